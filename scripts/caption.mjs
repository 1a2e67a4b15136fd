// Captions by transformers.js of a model that `toolkit export` wrote: a JSON object a line, {"image", "caption"}.
//
//     npm install @huggingface/transformers
//     TRANSFORMERS_JS=. node scripts/caption.mjs MODEL fp32 images.txt       # fp32 or q8 (int8); images.txt: a path a line
//
// TRANSFORMERS_JS is the folder with node_modules; without it that of this script counts.
import fs from 'fs';
import path from 'path';
import { createRequire } from 'module';

const home = path.resolve(process.env.TRANSFORMERS_JS ?? import.meta.dirname);
const { env, pipeline } = createRequire(home + '/')('@huggingface/transformers');
const [model, dtype, list] = process.argv.slice(2);

env.allowRemoteModels = false;
env.localModelPath = path.dirname(path.resolve(model)) + '/';
const captioner = await pipeline('image-to-text', path.basename(path.resolve(model)), { dtype });
const started = Date.now();
const images = fs.readFileSync(list, 'utf8').trim().split('\n');
for (const image of images) {
  const [{ generated_text: caption }] = await captioner(image);
  console.log(JSON.stringify({ image, caption }));
}
console.error(`${images.length} images, ${(images.length * 1000 / (Date.now() - started)).toFixed(2)} images/s`);
