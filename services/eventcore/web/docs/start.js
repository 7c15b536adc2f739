SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#ui",
  tryItOutEnabled: true,
  defaultModelsExpandDepth: -1,
});
