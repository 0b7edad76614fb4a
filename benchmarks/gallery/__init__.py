"""The gallery: one web page that shows the architectures, drawn and computed from their specs."""
