$# Take stored rows apart: rows of blocks as a file has them, to the planes of a layout. Workgroup row y takes a row, an invocation a word
$# of it in some plane. Before the rows come 64 words: the number of the first row, rows of a matrix here and in the weight, and where
$# their first goes and how far apart they are there. planes: for each the bytes of a record, and how to make them.
@group(0) @binding(0) var<storage, read> source: array<u32>;
$$ for plane in planes
@group(0) @binding({{ loop.index }}) var<storage, read_write> plane{{ loop.index0 }}: array<u32>;
$$ endfor

fn byte(at: u32) -> u32 { return (source[at >> 2u] >> ((at & 3u) << 3u)) & 255u; }

fn word(at: u32) -> u32 {
    let shift = (at & 3u) << 3u;
    if (shift == 0u) { return source[at >> 2u]; }
    return (source[at >> 2u] >> shift) | (source[(at >> 2u) + 1u] << (32u - shift));
}

fn half(at: u32) -> u32 { return word(at) & 0xffffu; }

// code e of the block that starts at byte `at`
fn code(at: u32, e: u32) -> u32 { return {{ code }}; }

$$ if scales is not none
// byte i of the 6-bit scales and minima of a block that starts at byte `at`, as pairs of bytes
fn scale(at: u32, i: u32) -> u32 {
    let first = at + {{ scales }}u + (i & 1u) * 4u;
    let j = (i >> 1u) & 3u;
    if (i < 8u) { return byte(first + j) & 63u; }
    return ((byte(at + {{ scales + 8 }}u + j) >> ((i & 1u) * 4u)) & 15u) | ((byte(first + j) >> 2u) & 48u);
}

$$ endif
$$ for plane in planes
// byte i of what plane {{ loop.index0 }} has of the block that starts at byte `at`
fn byte{{ loop.index0 }}(at: u32, i: u32) -> u32 {
$$ for start, made in plane.fields
    {{ "if (i >= %du) " % start if start }}{ return {{ made }}; }
$$ endfor
}

fn word{{ loop.index0 }}(at: u32, i: u32) -> u32 {
$$ if plane.whole is not none
    return word(at + {{ plane.whole }}u + i);
$$ elif plane.half is not none
    return half(at + {{ plane.half }}u) | (half(at + {{ stored + plane.half }}u) << 16u);
$$ else
$$ for start, stop, offset in plane.plain
    if (i >= {{ start }}u && i < {{ stop }}u) { return word(at + {{ offset }}u + i - {{ start }}u); }
$$ endfor
$$ set record = plane.bytes
    var all = 0u;
    for (var k = 0u; k < 4u; k++) { all |= byte{{ loop.index0 }}(at + (i + k) / {{ record }}u * {{ stored }}u, (i + k) % {{ record }}u) << (8u * k); }
    return all;
$$ endif
}

$$ endfor
@compute @workgroup_size({{ lanes }})
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) index: u32) {
    let row = source[0] + group.y;
    let target_row = row / source[1] * source[2] + source[3] + row % source[1] * source[4];
    let start = 256u + group.y * {{ blocks * stored }}u;
    var w = group.x * {{ lanes }}u + index;
$$ for plane in planes
$$ set words = plane.bytes * blocks // 4
    if (w < {{ words }}u) {
        plane{{ loop.index0 }}[target_row * {{ words }}u + w] = word{{ loop.index0 }}(start + 4u * w / {{ plane.bytes }}u * {{ stored }}u, 4u * w % {{ plane.bytes }}u);
        return;
    }
    w -= {{ words }}u;
$$ endfor
}
