// Search would run in a worker made from a blob, which the page's policy does not allow.
const options = { disableSearch: true, hideDownloadButton: false, nativeScrollbars: true };
Redoc.init("/openapi.json", options, document.getElementById("reference"));
