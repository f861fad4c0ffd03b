// What the scripts here share: a front to talk to, checks, and a line of JSON for each.
//
// A script is given the front as JSON in its first argument and prints {"check": …, "error": null} or
// {"check": …, "error": "what went wrong"}, once for each check. pytest makes a result of each line, and knows the names
// beforehand by reading them from the script: one `check("…",` at the start of a line. A third argument is the kind of
// model that a check wants; where there is none, the check must end in a 404.

import assert from "node:assert/strict";
import { setTimeout as wait } from "node:timers/promises";

export const front = JSON.parse(process.argv[2]);
export const settings = { baseURL: `${front.url}/v1`, apiKey: front.key, maxRetries: 0, timeout: 120_000 };
export const messages = [{ role: "user", content: front.question }];

const checks = [];
export function check(name, run, needs) {
  checks.push({ name, run, needs });
}

export async function all(stream) {
  const items = [];
  for await (const item of stream) items.push(item);
  return items;
}

export async function openRequests() {
  const answer = await fetch(`${front.pod_url}/load`, { headers: { connection: "close" } });
  return (await answer.json()).server_load;
}

export async function untilIdle() {
  const giveUpAt = Date.now() + 5000;
  while ((await openRequests()) > 0) {
    assert.ok(Date.now() < giveUpAt, "the pod still works, 5 s after its client left");
    await wait(10);
  }
}

export async function refused(promise, kind, status) {
  const error = await promise.then(
    () => assert.fail(`expected ${kind.name}`),
    (error) => error,
  );
  assert.ok(error instanceof kind, `expected ${kind.name}, got ${error}`);
  assert.equal(error.status, status);
  return error;
}

export async function report() {
  for (const { name, run, needs } of checks) {
    const given = needs === undefined || front[needs] !== null;
    if (!given) front[needs] = front.chat;
    let failure = null;
    try {
      await run();
      if (!given) failure = `expected a 404: no model here can ${needs}`;
    } catch (error) {
      if (given || error.status !== 404 || error.code !== "not_found") failure = String(error.stack ?? error);
    }
    if (!given) front[needs] = null;
    console.log(JSON.stringify({ check: name, error: failure }));
  }
}
