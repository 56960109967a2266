$$ set token_out = token
// One token of one row, drawn from the prefix of the order (key descending, index ascending) that top-k, top-p and min-p leave.
// Each asks where in that order a count or a mass is passed: first in which octave, then, while more tokens than fit remain, in which
// sixteenth of the span of keys or indices that is left, and then among these few by brute force.
{$ include "_sampling.wgsl" $}
{$ include "_sampling_weight.wgsl" $}
{$ include "_sampling_mass.wgsl" $}
{$ include "_sampling_feed.wgsl" $}

const FEW = {{ few }}u;
const EVERYTHING = vec2<u32>(0xffffffffu, 0xffffffffu);

// Tokens in the octave (or bin) where a count or mass is passed, what of the count or mass is left within it, and the mass before it.
struct Place { bin: u32, tokens: u32, rest: u32, before: vec2<u32> }
// The keys and indices that agree with these above their lowest bits. Within one key, all indices are in question.
struct Span { key: i32, key_bits: u32, index: u32, index_bits: u32 }
// The token at which a count or mass is passed and the mass up to and with it.
struct Cut { mass: vec2<u32>, token: u32 }

var<workgroup> octave_counts: array<atomic<u32>, OCTAVES>;
var<workgroup> octave_masses: array<atomic<u32>, OCTAVES>;
var<workgroup> bin_counts: array<atomic<u32>, 16>;
var<workgroup> bin_masses: array<atomic<u32>, 16>;
var<workgroup> listed: array<u32, BLOCKS>;  // blocks that have tokens in the octave
var<workgroup> listed_count: atomic<u32>;
var<workgroup> few_keys: array<i32, FEW>;
var<workgroup> few_indices: array<u32, FEW>;
var<workgroup> few_count: atomic<u32>;
var<workgroup> sum: atomic<u32>;
var<workgroup> place: Place;
var<workgroup> cut: Cut;

{$ macro each_listed() $}
    for (var at = lane; at < atomicLoad(&listed_count) * BLOCK; at += LANES) {
        let index = listed[at / BLOCK] * BLOCK + at % BLOCK;
        if (index < VOCAB) {
            let key = {{ keys.load("row * VOCAB + index") }};
            {{ caller() }}
        }
    }
{$ endmacro $}

fn record_of(row: u32, block: u32) -> u32 { return (row * BLOCKS + block) * RECORD; }

fn key_of_block(row: u32, block: u32) -> i32 { return bitcast<i32>({{ summary.load("record_of(row, block) + KEY_AT") }}); }

fn best_of_row(lane: u32, row: u32) -> Best {
    var key = LOWEST;
    var index = 0xffffffffu;
    for (var block = lane; block < BLOCKS; block += LANES) {
        let found = key_of_block(row, block);
        if (found > key) {
            key = found;
            index = {{ summary.load("record_of(row, block) + INDEX_AT") }};
        }
    }
    return reduce_best(lane, key, index);
}

// The blocks count octaves from their own best down, the row from its own.
fn add_octaves(lane: u32, row: u32, top: i32) {
    for (var octave = lane; octave < OCTAVES; octave += LANES) {
        atomicStore(&octave_counts[octave], 0u);
        atomicStore(&octave_masses[octave], 0u);
    }
    workgroupBarrier();
    for (var at = lane; at < BLOCKS * OCTAVES; at += LANES) {
        let block = at / OCTAVES;
        let octave = at % OCTAVES + u32((top >> 16u) - (key_of_block(row, block) >> 16u));
        if (octave < OCTAVES) {
            let word = record_of(row, block) + at % OCTAVES;
            atomicAdd(&octave_counts[octave], {{ summary.load("word") }});
            atomicAdd(&octave_masses[octave], {{ summary.load("word + OCTAVES") }});
        }
    }
    workgroupBarrier();
}

fn mass_before(octave: u32) -> vec2<u32> {
    var mass = vec2<u32>(0u, 0u);
    for (var o = 0u; o < octave; o++) { mass = plus(mass, widen(atomicLoad(&octave_masses[o]), o)); }
    return mass;
}

// The bin is OCTAVES where the goal is never passed.
fn find_octave(by_count: bool, goal: vec2<u32>) -> Place {
    var before = vec2<u32>(0u, 0u);
    var had = 0u;
    for (var octave = 0u; octave < OCTAVES; octave++) {
        let tokens = atomicLoad(&octave_counts[octave]);
        let after = plus(before, widen(atomicLoad(&octave_masses[octave]), octave));
        if (by_count && goal.x < had + tokens) { return Place(octave, tokens, goal.x - had, before); }
        if (!by_count && less(goal, after)) { return Place(octave, tokens, narrow(minus(goal, before), octave), before); }
        had += tokens;
        before = after;
    }
    return Place(OCTAVES, 0u, 0u, before);
}

fn find_bin(by_count: bool, goal: u32) -> Place {
    var rest = goal;
    var before = 0u;
    for (var bin = 0u; bin < 16u; bin++) {
        let tokens = atomicLoad(&bin_counts[bin]);
        let mass = atomicLoad(&bin_masses[bin]);
        let size = select(mass, tokens, by_count);
        if (rest < size) { return Place(bin, tokens, rest, vec2<u32>(before, 0u)); }
        rest -= size;
        before += mass;
    }
    return Place(0u, 0u, 0u, vec2<u32>(0u, 0u));
}

fn list_blocks(lane: u32, row: u32, top: i32, octave: u32) {
    if (lane == 0u) { atomicStore(&listed_count, 0u); }
    workgroupBarrier();
    for (var block = lane; block < BLOCKS; block += LANES) {
        let below = u32((top >> 16u) - (key_of_block(row, block) >> 16u));
        if (below <= octave) {
            if ({{ summary.load("record_of(row, block) + octave - below") }} > 0u) { listed[atomicAdd(&listed_count, 1u)] = block; }
        }
    }
    workgroupBarrier();
}

// Which sixteenth of the span, in the order, a token is in; 16 outside the span.
fn bin_of(span: Span, key: i32, index: u32) -> u32 {
    let high = u32(key - span.key);
    let low = index - span.index;
    if ((high >> span.key_bits) != 0u || (low >> span.index_bits) != 0u) { return 16u; }
    if (span.key_bits > 0u) { return 15u - (high >> (span.key_bits - 4u)); }
    return low >> (max(span.index_bits, 4u) - 4u);
}

fn inside(span: Span, bin: u32) -> Span {
    if (span.key_bits > 0u) {
        let key = span.key + i32((15u - bin) << (span.key_bits - 4u));
        return Span(key, span.key_bits - 4u, span.index, span.index_bits);
    }
    return Span(span.key, 0u, span.index + (bin << (span.index_bits - 4u)), span.index_bits - 4u);
}

fn count_bins(lane: u32, row: u32, span: Span) {
    for (var bin = lane; bin < 16u; bin += LANES) {
        atomicStore(&bin_counts[bin], 0u);
        atomicStore(&bin_masses[bin], 0u);
    }
    workgroupBarrier();
{$ call each_listed() $}
            let bin = bin_of(span, key, index);
            if (bin < 16u) {
                atomicAdd(&bin_counts[bin], 1u);
                atomicAdd(&bin_masses[bin], weight(key));
            }
{$ endcall $}
    workgroupBarrier();
}

fn collect_few(lane: u32, row: u32, span: Span) {
    if (lane == 0u) { atomicStore(&few_count, 0u); }
    workgroupBarrier();
{$ call each_listed() $}
            if (bin_of(span, key, index) < 16u) {
                let at = min(atomicAdd(&few_count, 1u), FEW - 1u);
                few_keys[at] = key;
                few_indices[at] = index;
            }
{$ endcall $}
    workgroupBarrier();
}

// Exactly one of the few holds the place: it leaves its index and the weights up to and with its own.
fn pick(lane: u32, by_count: bool, rest: u32) -> Cut {
    let tokens = min(atomicLoad(&few_count), FEW);
    for (var i = lane; i < tokens; i += LANES) {
        let key = few_keys[i];
        let index = few_indices[i];
        var ahead = 0u;
        var mass = 0u;
        for (var j = 0u; j < tokens; j++) {
            let other = few_keys[j];
            if (other > key || (other == key && few_indices[j] < index)) {
                ahead++;
                mass += weight(other);
            }
        }
        let start = select(mass, ahead, by_count);
        let size = select(weight(key), 1u, by_count);
        if (start <= rest && rest - start < size) { cut = Cut(vec2<u32>(mass + weight(key), 0u), index); }
    }
    return workgroupUniformLoad(&cut);
}

fn cut_at(lane: u32, row: u32, top: i32, by_count: bool, goal: vec2<u32>) -> Cut {
    if (lane == 0u) { place = find_octave(by_count, goal); }
    let octave = workgroupUniformLoad(&place);
    if (octave.bin == OCTAVES) { return Cut(EVERYTHING, 0u); }
    list_blocks(lane, row, top, octave.bin);
    var span = Span(((top >> 16u) - i32(octave.bin)) << 16u, 16u, 0u, 20u);
    var tokens = octave.tokens;
    var rest = octave.rest;
    var before = 0u;
    while (tokens > FEW) {
        count_bins(lane, row, span);
        if (lane == 0u) { place = find_bin(by_count, rest); }
        let bin = workgroupUniformLoad(&place);
        span = inside(span, bin.bin);
        tokens = bin.tokens;
        rest = bin.rest;
        before += bin.before.x;
    }
    collect_few(lane, row, span);
    let found = pick(lane, by_count, rest);
    return Cut(plus(octave.before, widen(before + found.mass.x, octave.bin)), found.token);
}

// The mass of all keys from this one up.
fn mass_from(lane: u32, row: u32, top: i32, lowest: i32) -> vec2<u32> {
    let octave = u32((top >> 16u) - (lowest >> 16u));
    if (octave >= OCTAVES) { return EVERYTHING; }
    list_blocks(lane, row, top, octave);
    if (lane == 0u) { atomicStore(&sum, 0u); }
    workgroupBarrier();
{$ call each_listed() $}
            if ((key >> 16u) == (lowest >> 16u) && key >= lowest) { atomicAdd(&sum, weight(key)); }
{$ endcall $}
    workgroupBarrier();
    if (lane == 0u) { cut = Cut(plus(mass_before(octave), widen(atomicLoad(&sum), octave)), 0u); }
    return workgroupUniformLoad(&cut).mass;
}

fn lesser(a: vec2<u32>, b: vec2<u32>) -> vec2<u32> { return select(b, a, less(a, b)); }

fn draw(lane: u32, row: u32, top: i32) -> u32 {
    add_octaves(lane, row, top);
    if (lane == 0u) { cut = Cut(mass_before(OCTAVES), 0u); }
    var mass = workgroupUniformLoad(&cut).mass;
    let top_k = u32(param(row, TOP_K));
    if (top_k > 0u) { mass = lesser(mass, cut_at(lane, row, top, true, vec2<u32>(top_k - 1u, 0u)).mass); }
    let top_p = bitcast<u32>(param(row, TOP_P));
    if (top_p > 0u) { mass = lesser(mass, cut_at(lane, row, top, false, portion(mass, top_p)).mass); }
    let min_p = param(row, MIN_P);
    if (min_p >= 0) { mass = lesser(mass, mass_from(lane, row, top, top - min_p)); }
    return cut_at(lane, row, top, false, portion(mass, bitcast<u32>(param(row, RANDOM)))).token;
}

@compute @workgroup_size({{ lanes }})
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let row = group.x;
    let slot = param(row, SLOT);
    if (slot < 0) {
        if (lane == 0u) { {{ token_out.store("row", "-1") }}; }
        return;
    }
    let top = best_of_row(lane, row);
    var token = top.index;
    if (param(row, DRAWS) != 0) { token = draw(lane, row, top.key); }
    if (lane == 0u) { feed(row, u32(slot), min(token, VOCAB - 1u)); }
}
