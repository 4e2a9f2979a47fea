// The client and the worker of graphile-worker, in one process: answers the questions of bench/peers/driver.py.
import { execFile } from "node:child_process";
import { createRequire } from "node:module";
import { createInterface } from "node:readline";

const require = createRequire(`${process.env.NODE_FOLDER}/x.js`);
const { makeWorkerUtils, run } = require("graphile-worker");
const connectionString = process.env.PGURL;
const AT_ONCE = 10000;

const utils = await makeWorkerUtils({ connectionString, logger: quiet() });
await utils.migrate();

let left = 0;
let finished = () => {};
const count = () => { if (--left === 0) finished(); };
const done = { noop: count, true: () => new Promise((resolve, reject) =>
    execFile("/bin/true", (error) => { error ? reject(error) : (count(), resolve()); })) };

// What its documentation advises for throughput: a local queue, completions in batches without delay.
const runners = Number(process.argv[2]) === 0 ? [] : [await run({
    preset: { worker: { connectionString, concurrentJobs: 24, maxPoolSize: 25, localQueue: { size: 500 },
        completeJobBatchDelay: 0, failJobBatchDelay: 0 } },
    taskList: done, logger: quiet(), noHandleSignals: true })];

function quiet() {
    const { Logger } = require("graphile-worker");
    return new Logger(() => () => {});
}

async function add(identifier, tasks) {
    for (let start = 0; start < tasks; start += AT_ONCE) {
        const size = Math.min(AT_ONCE, tasks - start);
        await utils.addJobs(Array.from({ length: size }, (_, i) => ({ identifier, payload: { id: start + i } })));
    }
}

async function finish(identifier, tasks) {
    left = tasks;
    const all = new Promise((resolve) => { finished = resolve; });
    await add(identifier, tasks);
    await all;
}

async function timed(work) {
    const start = performance.now();
    await work();
    return performance.now() - start;
}

async function answer(what, tasks) {
    if (what === "latency") {
        const times = [];
        for (let i = 0; i < tasks; i++) times.push(await timed(() => finish("noop", 1)));
        return times;
    }
    return await timed(() => (what === "queue" ? add("noop", tasks) : finish(what, tasks))) / 1000;
}

if (runners.length) await finish("noop", 1000);
console.log('"ready"');
for await (const line of createInterface({ input: process.stdin })) {
    const [what, tasks] = line.split(" ");
    console.log(JSON.stringify(await answer(what, Number(tasks))));
}
process.exit(0);
