// openai-node before a simulated pod that fails on demand: each failure as its class, and retries where they help.

import assert from "node:assert/strict";
import OpenAI from "openai";
import { check, front, messages, refused, report, settings } from "./checks.mjs";

const client = new OpenAI(settings);
const ask = (fault, more) => client.chat.completions.create({
  model: front.chat, messages, max_tokens: 20, sim_fault: fault, ...more,
});

check("a pod's own failure is an InternalServerError", async () => {
  const error = await refused(ask({ kind: "status", status: 500 }), OpenAI.InternalServerError, 500);
  assert.equal(error.code, "upstream_failed");
  assert.ok(error.requestID);
});

check("a busy pod is ridden over", async () => {
  const busy = { kind: "status", status: 503, count: 1 };
  const set = await fetch(`${front.pod_url}/sim/fault`, { method: "POST", body: JSON.stringify(busy) });
  assert.equal(set.status, 200);
  const patient = new OpenAI({ ...settings, maxRetries: 2 });
  const answer = await patient.chat.completions.create({ model: front.chat, messages, max_tokens: 4 });
  assert.ok(answer.choices[0].message.content);
});

check("a busy pod says when to come back", async () => {
  const error = await refused(ask({ kind: "status", status: 503 }), OpenAI.InternalServerError, 503);
  assert.equal(error.code, "overloaded");
  assert.ok(Number(error.headers.get("retry-after-ms")) > 0);
});

async function breaks(kind, code) {
  const stream = await ask({ kind, after: 3 }, { stream: true });
  let chunks = 0;
  const reading = (async () => {
    for await (const _ of stream) chunks += 1;
  })();
  const error = await reading.then(() => assert.fail("it came to a clean end"), (error) => error);
  assert.ok(error instanceof OpenAI.APIError, String(error));
  assert.equal(chunks, 3);
  assert.equal(String(error.code), code);
}

check("a stream that is cut raises in the middle", () => breaks("cut", "upstream_truncated"));

check("a stream that is reset raises in the middle", () => breaks("reset", "upstream_reset"));

check("a pod's own error event raises in the middle", () => breaks("error_event", "500"));

await report();
