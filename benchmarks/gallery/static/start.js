// Fill the page, then set what the address says.

startArchitectures();
startCompare();
startFit();
startSwap();
startCharts();
startPlaygrounds();
startState();
