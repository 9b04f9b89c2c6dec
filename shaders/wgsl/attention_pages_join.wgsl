const HIDDEN = -3.402823e38;

struct Place { batch: u32, kv_head: u32, first_head: u32 }

fn place_of(index: u32) -> Place {
    let own = index % params.kv_heads;
    return Place(index / params.kv_heads, own / params.chunks, own % params.chunks * params.group);
}

struct Row { present: bool, out: u32 }

fn row_of(place: Place, index: u32) -> Row {
    let within = place.first_head + index;
    let head = place.kv_head * params.heads_each + within;
    return Row(within < params.heads_each, params.out_offset + place.batch * params.out_row + head * params.out_head);
}

