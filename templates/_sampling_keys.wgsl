// Zero below 2^-100, at most 2^60 in magnitude, NaN lowest. Tested on the bits: a compiler may assume that no float is NaN or infinite.
fn bounded(x: f32) -> f32 {
    let bits = bitcast<u32>(x);
    let magnitude = bits & 0x7fffffffu;
    if (magnitude < 0x0d800000u) { return 0.0; }
    let sign = select(bits & 0x80000000u, 0x80000000u, magnitude > 0x7f800000u);
    return bitcast<f32>(sign | min(magnitude, 0x5d800000u));
}

// A logit times its factor: one multiplication, which rounds alike on every adapter.
fn scaled(row: u32, slot: u32, index: u32) -> f32 {
    let logit = bounded({{ logits.load("row * VOCAB + index") }});
    let had = {{ seen.load("slot * VOCAB + index") }} == bitcast<u32>(param(row, STAMP));
    let field = select(SCALE, select(SCALE_NEGATIVE, SCALE_POSITIVE, logit > 0.0), had);
    return logit * bitcast<f32>(param(row, field));
}

// Integers in the order of the floats.
fn ordered(x: f32) -> i32 {
    let bits = bitcast<i32>(x);
    return bits ^ ((bits >> 31u) & 0x7fffffff);
}
