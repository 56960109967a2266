$# A team of invocations a result; `r` counts the elements that one is made of.
$$ set per = lanes // team
$$ if team > 1
var<workgroup> shared_best: array<{{ scalar }}, {{ lanes }}>;
$$ if places
var<workgroup> shared_found: array<u32, {{ lanes }}>;
$$ endif
$$ endif
$$ if places
fn better(value: {{ scalar }}, place: u32, best: {{ scalar }}, found: u32) -> bool {
    return place < {{ length }}u && (found == {{ length }}u || {{ better }});
}
$$ endif
@compute @workgroup_size({{ lanes }})
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) index: u32) {
    let slot = (group.x + group.y * {{ across }}u) * {{ per }}u + index / {{ team }}u;
    let i = min(slot, {{ count - 1 }}u);
    var best = {{ start }};
$$ if places
    var found = {{ length }}u;
$$ endif
    for (var r = index % {{ team }}u; r < {{ length }}u; r += {{ team }}u) {
$$ set inner = elements(at)
$$ set value = inner.load(source, where)
        {{ inner.statements() }}
$$ if places
        if (better({{ value }}, r, best, found)) { best = {{ value }}; found = r; }
$$ else
        best = {{ merged("best", value) }};
$$ endif
    }
$$ if team > 1
    shared_best[index] = best;
$$ if places
    shared_found[index] = found;
$$ endif
    for (var half = {{ team // 2 }}u; half > 0u; half >>= 1u) {
        workgroupBarrier();
        if (index % {{ team }}u < half) {
$$ if places
            if (better(shared_best[index + half], shared_found[index + half], shared_best[index], shared_found[index])) {
                shared_best[index] = shared_best[index + half];
                shared_found[index] = shared_found[index + half];
            }
$$ else
            shared_best[index] = {{ merged("shared_best[index]", "shared_best[index + half]") }};
$$ endif
        }
    }
    best = shared_best[index];
$$ if places
    found = shared_found[index];
$$ endif
$$ endif
    if (slot < {{ count }}u && index % {{ team }}u == 0u) {
$$ if places
        let reduced = i32(found);
$$ else
        let reduced = best;
$$ endif
$$ set after = elements(at, {made: "reduced"}, "o")
$$ set value = after.load(result, "i")
        {{ after.statements() }}
        {{ out.store("i", value) }};
    }
}
