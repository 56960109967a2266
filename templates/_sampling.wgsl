// What the sampling kernels share; compiler/sampling.py says what it means.
const VOCAB = {{ vocab }}u;
const LANES = {{ lanes }}u;
const BLOCK = {{ block }}u;    // consecutive tokens that one workgroup of the first stage takes
const BLOCKS = {{ (vocab + block - 1) // block }}u;
const LOWEST = i32(-2147483648);

const PARAMS = 12u;            // words of a row of parameters
const SCALE = 0u;
const SCALE_POSITIVE = 1u;
const SCALE_NEGATIVE = 2u;
const DRAWS = 3u;
const TOP_K = 4u;
const TOP_P = 5u;
const MIN_P = 6u;
const RANDOM = 7u;
const STAMP = 8u;
const SLOT = 9u;

struct Best { key: i32, index: u32 }

var<workgroup> best_key: atomic<i32>;
var<workgroup> best_index: atomic<u32>;
var<workgroup> best: Best;

fn param(row: u32, field: u32) -> i32 { return {{ params.load("row * PARAMS + field") }}; }

// The greatest key and, of those that hold it, the lowest index. Integer atomics give the same in any order.
fn reduce_best(lane: u32, key: i32, index: u32) -> Best {
    if (lane == 0u) {
        atomicStore(&best_key, LOWEST);
        atomicStore(&best_index, 0xffffffffu);
    }
    workgroupBarrier();
$$ if subgroups
    if (key == subgroupMax(key)) { atomicMax(&best_key, key); }
$$ else
    atomicMax(&best_key, key);
$$ endif
    workgroupBarrier();
    if (key == atomicLoad(&best_key)) { atomicMin(&best_index, index); }
    workgroupBarrier();
    if (lane == 0u) { best = Best(atomicLoad(&best_key), atomicLoad(&best_index)); }
    return workgroupUniformLoad(&best);
}
