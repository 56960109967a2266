// The token goes to the host, into the next step and into the history of its sequence.
fn feed(row: u32, slot: u32, token: u32) {
    {{ token_out.store("row", "i32(token)") }};
    {{ last.store("slot", "i32(token)") }};
    {{ seen.store("slot * VOCAB + token", "bitcast<u32>(param(row, STAMP))") }};
}
