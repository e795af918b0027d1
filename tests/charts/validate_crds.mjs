// Validates custom resources: node validate_crds.mjs FOLDER < JSON list. Prints one line per problem.
// FOLDER contains the node_modules that deploy/node_tools.sh installed.
import { readFileSync } from "node:fs";
import { pathToFileURL } from "node:url";

const MODELS = {
  "monitoring.coreos.com/v1": "prometheus-operator/monitoring.coreos.com/v1",
  "keda.sh/v1alpha1": "keda/keda.sh/v1alpha1",
};

let problems = 0;
for (const resource of JSON.parse(readFileSync(0, "utf8"))) {
  const file = `${process.argv[2]}/node_modules/@kubernetes-models/${MODELS[resource.apiVersion]}/${resource.kind}.js`;
  const Model = (await import(pathToFileURL(file)))[resource.kind];
  try {
    new Model(resource).validate();
  } catch (error) {
    problems += 1;
    console.log(`${resource.kind}: ${error.message}`);
  }
}
process.exit(problems ? 1 : 0);
