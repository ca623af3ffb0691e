// plainjob, which is Node's: the client of client.py and the jobs of jobs.py once more.
//
//     node plainjob.mjs work NUMBER     NUMBER is the worker's slot in the tally
//     node plainjob.mjs publish|one-by-one|steadily …
//
// It finds its packages where NODE_PATH says, and keeps its queue in BENCH_BROKER.

import fs from "node:fs";
import { createRequire } from "node:module";
import path from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { pathToFileURL } from "node:url";

const packages = process.env.NODE_PATH;
const require = createRequire(path.join(packages, "package.json"));
const Database = require("better-sqlite3");
const { better, defineQueue, defineWorker } = await import(
  pathToFileURL(path.join(packages, "plainjob/dist/plainjob.js")).href
);

const directory = process.env.BENCH_DIRECTORY;
const silent = { debug() {}, info() {}, warn() {}, error: console.error };
const queue = defineQueue({
  connection: better(new Database(process.env.BENCH_BROKER)),
  logger: silent,
});
const [what, ...words] = process.argv.slice(2);
const now = () => process.hrtime.bigint(); // CLOCK_MONOTONIC, as Python's monotonic_ns
const enqueue = (kind) => queue.add("job", { kind, publishedNs: String(now()) });

if (what === "work") {
  await work(Number(words[0]));
} else {
  const figures =
    what === "publish"
      ? publish(words[0], Number(words[1]))
      : what === "one-by-one"
        ? await oneByOne(Number(words[0]), Number(words[1]))
        : await steadily(Number(words[0]), Number(words[1]));
  fs.writeFileSync(path.join(directory, "client.json"), JSON.stringify(figures));
  queue.close();
}

async function work(number) {
  const tally = fs.openSync(path.join(directory, "tally"), "r+");
  const marks = fs.openSync(path.join(directory, "marks.txt"), "a");
  const slot = new BigUint64Array(3);
  const bytes = new Uint8Array(slot.buffer);
  const worker = defineWorker(
    "job",
    async (job) => {
      const began = now();
      const { kind, publishedNs } = JSON.parse(job.data);
      if (kind === "mark") fs.writeSync(marks, `${publishedNs} ${began}\n`);
      if (!slot[0]) slot[1] = began;
      slot[2] = began;
      slot[0] += 1n;
      fs.writeSync(tally, bytes, 0, 24, 8 + number * 24);
      if (kind === "nap") await sleep(2);
    },
    { queue, logger: silent },
  );
  process.on("SIGTERM", async () => {
    await worker.stop();
    process.exit(0);
  });
  await worker.start();
}

function publish(kind, count) {
  enqueue(kind);
  const beganNs = Number(now()); // exact to a microsecond
  const began = performance.now();
  const cpu = process.cpuUsage();
  for (let number = 1; number < count; number += 1) enqueue(kind);
  const used = process.cpuUsage(cpu);
  const timed = Math.max(1, count - 1);
  return {
    rate: (timed / (performance.now() - began)) * 1000,
    cpu_us: (used.user + used.system) / timed,
    began_ns: beganNs,
  };
}

function ran(tally) {
  const slots = new BigUint64Array(16 * 3);
  fs.readSync(tally, new Uint8Array(slots.buffer), 0, 16 * 24, 8);
  let sum = 0n;
  for (let index = 0; index < slots.length; index += 3) sum += slots[index];
  return Number(sum);
}

async function oneByOne(count, seconds) {
  const tally = fs.openSync(path.join(directory, "tally"), "r");
  const before = ran(tally);
  const until = performance.now() + seconds * 1000;
  let number = 0;
  while (number < count && performance.now() < until) {
    enqueue("mark");
    number += 1;
    while (ran(tally) < before + number) await sleep(1);
    await sleep(20);
  }
  return { count: number };
}

async function steadily(perSecond, seconds) {
  const count = Math.max(1, Math.round(perSecond * seconds));
  const began = performance.now();
  for (let number = 0; number < count; number += 1) {
    const ahead = began + (number / perSecond) * 1000 - performance.now();
    if (ahead > 1) await sleep(ahead);
    enqueue("mark");
  }
  return { rate: (count / (performance.now() - began)) * 1000, count };
}
