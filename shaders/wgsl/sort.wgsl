// Sorting along an axis by bitonic merges. An entry is a key, in an order that unsigned comparison gives, and its position,
// which makes all entries different and the sort stable. Places beyond the row's end hold the largest key and sort last.
struct Entry { key: ${KEY}, index: u32 }

${KEY_FUNCTIONS}

fn before(a: Entry, b: Entry) -> bool {
    return key_less(a.key, b.key) || (all(a.key == b.key) && a.index < b.index);
}

struct Place { source: u32, sink: u32 }

fn place_of(row: u32) -> Place {
    var place = Place(params.source_offset, 0u);
    var rest = row;
    for (var axis = 0u; axis < params.rank; axis += 1u) {
        let dim = params.dims[axis];
        let at = rest % dim.x;
        rest /= dim.x;
        place.source += at * dim.y;
        place.sink += at * dim.z;
    }
    return place;
}

