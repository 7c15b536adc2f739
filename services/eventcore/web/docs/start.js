let token = ""; // of what this page has seen

SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#ui",
  tryItOutEnabled: true,
  defaultModelsExpandDepth: -1,
  requestInterceptor: (request) => {
    if (token && !request.loadSpec) request.headers["Consistency-Token"] ??= token;
    return request;
  },
  responseInterceptor: (response) => {
    token = response.headers?.["consistency-token"] ?? token;
    if (response.body?.type === "urn:problem:other-log") token = "";
    return response;
  },
});
