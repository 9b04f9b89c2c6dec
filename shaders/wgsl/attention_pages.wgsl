// Scores and softmax over keys and values in pages. One key head and some of the query heads that share it at a time; a row
// is a query of one of them. Key `j` of a sequence lies at `j % page_len` of the page that its row of the table names for
// block `j / page_len`.
const HIDDEN = -3.402823e38;
const NO_ROW = 0xffffffffu;

struct Place { batch: u32, kv_head: u32, first_head: u32 }

fn place_of(index: u32) -> Place {
    let own = index % params.kv_heads;
    let kv_head = own / params.chunks;
    return Place(index / params.kv_heads, kv_head, own % params.chunks * params.group);
}

// The sequence of a query, of which the table has a row; or the number of rows of the table.
fn sequence_of(query: u32) -> u32 {
    let sequence = load_sequences(params.sequences_offset + query * params.sequences_step);
    if sequence.y != 0u || sequence.x >= params.table_rows {
        store_faults(0u, params.launch);
        return params.table_rows;
    }
    return sequence.x;
}

// The keys that a query sees: the first and the one after the last.
fn keys_of(query: u32) -> vec2<u32> {
    var position = load_positions(params.positions_offset + query * params.positions_step);
    if (position.y & 0x80000000u) != 0u || params.pages == 0u || sequence_of(query) == params.table_rows {
        return vec2<u32>();
    }
    if position.y != 0u {
        position.x = NO_ROW - 1u;
    }
    let first = select(0u, position.x - params.window + 1u, params.window != 0u && position.x >= params.window);
    let end = min(params.keys, min(position.x, NO_ROW - 1u) + 1u);
    return vec2<u32>(min(first, end), end);
}

struct Row { present: bool, query: u32, first_key: u32, key_count: u32, source: u32, out: u32 }

fn row_of(place: Place, index: u32) -> Row {
    let query = place.batch * params.queries + index / params.group;
    let within = place.first_head + index % params.group;
    let head = place.kv_head * params.heads_each + within;
    let present = index < params.queries * params.group && within < params.heads_each;
    var seen = vec2<u32>();
    if present {
        seen = keys_of(query);
    }
    return Row(present, query, seen.x, seen.y - seen.x,
        params.query_offset + query * params.query_row + head * params.query_head,
        params.out_offset + query * params.out_row + head * params.out_head);
}

// Where key and value of a key of a sequence begin; a page outside is the nearest.
fn key_row(place: Place, sequence: u32, key: u32) -> vec2<u32> {
    let block = key / params.page_len;
    let entry = load_table(params.table_offset + sequence * params.table_row + block * params.table_block);
    let within = key - block * params.page_len;
    var page = min(entry.x, params.pages - 1u);
    if entry.y != 0u {
        page = select(params.pages - 1u, 0u, (entry.y & 0x80000000u) != 0u);
    }
    return vec2<u32>(
        params.key_offset + page * params.key_page + place.kv_head * params.key_head + within * params.key_row,
        params.value_offset + page * params.value_page + place.kv_head * params.value_head + within * params.value_row);
}

// The score that softmax sees, or HIDDEN.
fn finished_score(raw: f32, row: Row, key: u32) -> f32 {
    if key - row.first_key >= row.key_count {
        return HIDDEN;
    }
    var score = raw * bitcast<f32>(params.scale);
    let cap = bitcast<f32>(params.softcap);
    if cap != 0.0 {
        // Beyond 15 tanh is 1 in f32, and some drivers' tanh overflows far out.
        score = cap * tanh(clamp(score / cap, -15.0, 15.0));
    }
    return score;
}

// softmax's numerator; `largest` is the largest score so far.
fn weight(score: f32, largest: f32) -> f32 {
    return select(exp(score - largest), 0.0, score == HIDDEN);
}

fn query_value(row: Row, at: u32) -> f32 {
    if row.present && at < params.depth {
        return load_query(row.source + at * params.query_depth);
    }
    return 0.0;
}

fn key_value(start: u32, at: u32) -> f32 {
    if start != NO_ROW && at < params.depth {
        return load_key(start + at * params.key_depth);
    }
    return 0.0;
}

fn value_value(start: u32, at: u32) -> f32 {
    if start != NO_ROW && at < params.value_depth {
        return load_value(start + at * params.value_col);
    }
    return 0.0;
}
