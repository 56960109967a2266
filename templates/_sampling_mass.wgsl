// Masses are 64 bits as (low, high).
fn plus(a: vec2<u32>, b: vec2<u32>) -> vec2<u32> {
    let low = a.x + b.x;
    return vec2<u32>(low, a.y + b.y + select(0u, 1u, low < a.x));
}

fn minus(a: vec2<u32>, b: vec2<u32>) -> vec2<u32> { return vec2<u32>(a.x - b.x, a.y - b.y - select(0u, 1u, a.x < b.x)); }

fn less(a: vec2<u32>, b: vec2<u32>) -> bool { return a.y < b.y || (a.y == b.y && a.x < b.x); }

// A sum of weights of an octave as a mass. (A shift by 32 would be a shift by 0, so the high word shifts twice.)
fn widen(sum: u32, octave: u32) -> vec2<u32> { return vec2<u32>(sum << (31u - octave), (sum >> 1u) >> octave); }

// A mass below that of one octave, in the octave's weights.
fn narrow(mass: vec2<u32>, octave: u32) -> u32 { return (mass.x >> (31u - octave)) | ((mass.y << 1u) << octave); }

fn product(a: u32, b: u32) -> vec2<u32> {
    let cross = (a >> 16u) * (b & 0xffffu) + (((a & 0xffffu) * (b & 0xffffu)) >> 16u);
    let middle = (a & 0xffffu) * (b >> 16u) + (cross & 0xffffu);
    return vec2<u32>(a * b, (a >> 16u) * (b >> 16u) + (cross >> 16u) + (middle >> 16u));
}

// mass * fraction / 2^32
fn portion(mass: vec2<u32>, fraction: u32) -> vec2<u32> {
    return plus(product(mass.y, fraction), vec2<u32>(product(mass.x, fraction).y, 0u));
}
