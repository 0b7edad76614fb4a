// Fill the page, then apply the settings of the address.

startArchitectures();
startCompare();
startFit();
startSwap();
startCharts();
startPlaygrounds();
startState();
