$# Element-wise ops that no other kernel took in, and rearrangements: an invocation an element.
@compute @workgroup_size({{ lanes }})
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) index: u32) {
    let i = (group.x + group.y * {{ across }}u) * {{ lanes }}u + index;
    if (i < {{ count }}u) {
        let row = i / {{ width }}u;
        let col = i % {{ width }}u;
$$ if kind == "split"
$$ set start = namespace(at=0)
$$ for part in outs
        if (col >= {{ start.at }}u && col < {{ start.at + attr.sizes[loop.index0] }}u) { {{ part.store("row * %du + col - %du" % (attr.sizes[loop.index0], start.at), x.load("i")) }}; }
$$ set start.at = start.at + attr.sizes[loop.index0]
$$ endfor
$$ elif kind == "unzip"
        if (col % 2u == 0u) { {{ outs[0].store("row * %du + col / 2u" % (width // 2), x.load("i")) }}; }
        else { {{ outs[1].store("row * %du + col / 2u" % (width // 2), x.load("i")) }}; }
$$ elif kind == "slice"
        let wide = i / {{ inner * (attr.stop - attr.start) }}u;
        {{ out.store("i", x.load("wide * %du + i %% %du + %du" % (inner * x.shape[attr.axis], inner * (attr.stop - attr.start), inner * attr.start))) }};
$$ elif kind == "concat"
$$ set first, second = inner * a.shape[attr.axis], inner * b.shape[attr.axis]
        let wide = i / {{ first + second }}u;
        let within = i % {{ first + second }}u;
        if (within < {{ first }}u) { {{ out.store("i", a.load("wide * %du + within" % first)) }}; }
        else { {{ out.store("i", b.load("wide * %du + within - %du" % (second, first))) }}; }
$$ else
        {{ finish.whole("row", "col") }}
$$ endif
    }
}
