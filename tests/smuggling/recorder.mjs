// The same on Node's own parser: `node recorder.mjs PORT FILE MODELS ANSWER`.
import { appendFileSync } from "node:fs";
import { createServer } from "node:http";

const [port, file, models, answer] = process.argv.slice(2);
const server = createServer((request, response) => {
  const from = request.socket.remotePort;
  const parts = [];
  request.on("data", (part) => parts.push(part));
  request.on("error", () => {});
  request.on("end", () => {
    const body = Buffer.concat(parts).toString("latin1");
    const lists = request.method === "GET" && body === "";
    if (!lists) {
      appendFileSync(file, JSON.stringify({ port: from, method: request.method, body }) + "\n");
    }
    const said = lists ? models : answer;
    response.writeHead(200, { "content-type": "application/json", "content-length": said.length });
    response.end(said);
  });
});
server.listen(Number(port), "127.0.0.1");
