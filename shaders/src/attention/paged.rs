//! Parameters of attention over pages.

use crate::shader::params;

params! {
    /// Parameters of every attention kernel over pages. Lengths and strides in elements; strides are two's complement.
    /// Floats are given by their bits.
    PagedParams {
        /// Groups of queries that are computed apart: every query is one for a few rows, all together are one for tiles.
        batches,
        /// Key heads, each as often as its query heads are divided.
        kv_heads,
        /// Parts that the query heads of a key head are divided into.
        chunks,
        /// Query heads of such a part, the last of which may have fewer.
        group,
        /// Query heads that share a key head.
        heads_each,
        /// Queries of a group.
        queries,
        /// Keys that a sequence can have.
        keys,
        /// Length of a query and of a key.
        depth,
        /// Length of a value.
        value_depth,
        /// Factor of the scores (f32 bits).
        scale,
        /// Soft limit of the scores (f32 bits); 0 for none.
        softcap,
        /// Keys that a query sees at most, its own included; 0 for all.
        window,
        /// Workgroups along the rows of one key head; tile form only.
        row_tiles,
        /// Workgroups along the value columns.
        col_tiles,
        /// Key ranges; few-rows form only.
        splits,
        /// Keys of one range, a multiple of 64.
        split_keys,
        /// Pages.
        pages,
        /// Keys of a page.
        page_len,
        /// Sequences that the table knows.
        table_rows,
        /// First entry of the table.
        table_offset,
        /// Table stride from sequence to sequence.
        table_row,
        /// Table stride from block to block.
        table_block,
        /// Sequence of the first query.
        sequences_offset,
        /// Stride of the sequences.
        sequences_step,
        /// Position of the first query.
        positions_offset,
        /// Stride of the positions.
        positions_step,
        /// First query element.
        query_offset,
        /// Query stride from row to row.
        query_row,
        /// Query stride from head to head.
        query_head,
        /// Query stride from element to element.
        query_depth,
        /// First key element.
        key_offset,
        /// Key stride from page to page.
        key_page,
        /// Key stride from head to head.
        key_head,
        /// Key stride from key to key.
        key_row,
        /// Key stride from element to element.
        key_depth,
        /// First value element.
        value_offset,
        /// Value stride from page to page.
        value_page,
        /// Value stride from head to head.
        value_head,
        /// Value stride from key to key.
        value_row,
        /// Value stride from column to column.
        value_col,
        /// First result element.
        out_offset,
        /// Result stride from row to row.
        out_row,
        /// Result stride from head to head.
        out_head,
        /// Result stride from column to column.
        out_col,
        /// The number that faults are reported with.
        launch,
    }
}
