// onnxruntime's attention (npm's onnxruntime-node), on the cases that peers.cpp writes.
//
//     node onnxruntime.js FILE    a line of JSON; exit code 77 where it has no such attention
//
// One node: MultiHeadAttention of com.microsoft, or GroupQueryAttention where query heads share keys. q, k and v are
// [n, heads d] there, which is not timed.
'use strict';
const fs = require('fs');
const ort = require('onnxruntime-node');

// Just enough of protocol buffers to say a model: fields of numbers, floats, strings and messages.
const varint = (n) => { const bytes = []; for (; n > 127; n = Math.floor(n / 128)) bytes.push(n % 128 | 128); return Buffer.from([...bytes, n]); };
const number = (field, n) => Buffer.concat([varint(field * 8), varint(n)]);
const bytes = (field, data) => Buffer.concat([varint(field * 8 + 2), varint(data.length), data]);
const text = (field, s) => bytes(field, Buffer.from(s));
const float = (field, x) => { const b = Buffer.alloc(4); b.writeFloatLE(x); return Buffer.concat([varint(field * 8 + 5), b]); };
const message = (field, ...parts) => bytes(field, Buffer.concat(parts));

const FLOAT = 1, INT32 = 6;
const tensorType = (field, name, type, dims) => message(field, text(1, name), message(2, message(1, number(1, type),
  message(2, ...dims.map((d) => message(1, number(1, d)))))));
const attribute = (name, value) => Number.isInteger(value)
  ? message(5, text(1, name), number(3, value), number(20, 2))
  : message(5, text(1, name), float(2, value), number(20, 1));
const model = (op, inputs, outputs, attributes) => Buffer.concat([
  number(1, 8),  // version of the format
  message(7,
    message(1, ...inputs.map((i) => text(1, i ? i.name : '')), ...outputs.map((o) => text(2, o.name)), text(4, op),
      ...Object.entries(attributes).map(([name, value]) => attribute(name, value)), text(7, 'com.microsoft')),
    text(2, 'attention'),
    ...inputs.filter((i) => i).map((i) => tensorType(11, i.name, i.type, i.dims)),
    ...outputs.map((o) => tensorType(12, o.name, FLOAT, o.dims))),
  message(8, text(1, ''), number(2, 17)), message(8, text(1, 'com.microsoft'), number(2, 1))]);

function read(file) {
  const data = fs.readFileSync(file);
  const [heads, kvHeads, nQ, nK, d, causal] = Array.from({ length: 6 }, (_, i) => Number(data.readBigInt64LE(8 * i)));
  let at = 48;
  const floats = (count) => { const x = new Float32Array(data.buffer.slice(data.byteOffset + at, data.byteOffset + at + 4 * count)); at += 4 * count; return x; };
  return { heads, kvHeads, nQ, nK, d, causal, q: floats(heads * nQ * d), k: floats(kvHeads * nK * d), v: floats(kvHeads * nK * d), expected: floats(heads * nQ * d) };
}

// [heads, n, d] to [n, heads, d].
function tokens(x, heads, n, d) {
  const to = new Float32Array(x.length);
  for (let h = 0; h < heads; ++h)
    for (let i = 0; i < n; ++i) to.set(x.subarray((h * n + i) * d, (h * n + i + 1) * d), (i * heads + h) * d);
  return to;
}

async function main() {
  const c = read(process.argv[2]);
  const { heads, kvHeads, nQ, nK, d, causal } = c;
  const input = (name, type, dims, data) => ({ name, type, dims, tensor: new ort.Tensor(type === FLOAT ? 'float32' : 'int32', data, dims) });
  const q = input('q', FLOAT, [1, nQ, heads * d], tokens(c.q, heads, nQ, d));
  const scale = Math.fround(1 / Math.sqrt(d)) + 1e-12;  // no integer, so that it is said as a float
  const out = { name: 'out', dims: [1, nQ, heads * d] };
  let inputs, outputs = [out], op, attributes;
  if (heads === kvHeads && (nQ === nK || !causal)) {
    op = 'MultiHeadAttention';
    inputs = [q, input('k', FLOAT, [1, nK, heads * d], tokens(c.k, heads, nK, d)), input('v', FLOAT, [1, nK, heads * d], tokens(c.v, heads, nK, d))];
    attributes = { num_heads: heads, scale, unidirectional: causal };
  } else if (causal && nQ === nK) {
    op = 'GroupQueryAttention';
    const cache = (name) => ({ name, dims: [1, kvHeads, nK, d] });
    inputs = [q, input('k', FLOAT, [1, nK, kvHeads * d], tokens(c.k, kvHeads, nK, d)), input('v', FLOAT, [1, nK, kvHeads * d], tokens(c.v, kvHeads, nK, d)), null, null,
      input('lengths', INT32, [1], Int32Array.of(nK - 1)), input('total', INT32, [1], Int32Array.of(nK))];
    outputs = [out, cache('present_k'), cache('present_v')];
    attributes = { num_heads: heads, kv_num_heads: kvHeads, scale };
  } else {
    process.exit(77);  // its decode step copies the cache, which is another work
  }
  const session = await ort.InferenceSession.create(model(op, inputs, outputs, attributes), { intraOpNumThreads: 1, interOpNumThreads: 1 });
  const feeds = Object.fromEntries(inputs.filter((i) => i).map((i) => [i.name, i.tensor]));
  const once = async () => {
    const start = process.hrtime.bigint();
    const result = await session.run(feeds, ['out']);
    return [Number(process.hrtime.bigint() - start) * 1e-9, result.out.data];
  };
  let [first, result] = await once();
  const seconds = [], runs = Math.min(31, Math.max(3, Math.floor(1.5 / first)));
  for (let i = 0; i < runs; ++i) { let s; [s, result] = await once(); seconds.push(s); }
  seconds.sort((a, b) => a - b);
  const expected = tokens(c.expected, heads, nQ, d);
  let error = 0, most = 0;
  for (const x of c.v) most = Math.max(most, Math.abs(x));
  for (let i = 0; i < expected.length; ++i) { const off = Math.abs(result[i] - expected[i]); if (!(off <= error)) error = off; }
  console.log(JSON.stringify({ peer: 'onnxruntime', version: ort.env.versions.node, seconds: seconds[runs >> 1], error: error / most }));
}

main().catch((e) => { console.error(String(e)); process.exit(1); });
