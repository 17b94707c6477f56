// Prints a JSON Schema whose properties are the parts named in entry.ts: node generate.mjs > schema.json
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { createGenerator } from 'ts-json-schema-generator';

const here = dirname(fileURLToPath(import.meta.url));
const generator = createGenerator({
  path: join(here, 'entry.ts'),
  tsconfig: join(here, 'tsconfig.json'),
  type: 'Parts',
  // Inline: two of Grafana's packages have a DataSourceRef, and they differ.
  expose: 'none',
  additionalProperties: false,
  skipTypeCheck: true,
});
process.stdout.write(JSON.stringify(generator.createSchema('Parts'), null, 1));
