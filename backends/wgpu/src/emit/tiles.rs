//! Kernels whose loads and stores are contiguous along different axes: what is loaded the other way goes through squares in
//! workgroup memory.

use cupola_ir::kernel::{Expr, ExprId};

use super::lanes::LANES;
use super::scalar::held;
use super::{EmitError, Item, THREADS, TILE, TILE_PITCH, Writer};

impl Writer<'_> {
    /// A workgroup's tile: filled along `other`, taken along the last parallel axis.
    pub(super) fn tiles(&mut self, other: usize, fours: bool) -> Result<(), EmitError> {
        let Some(inner) = self.kernel.parallel.checked_sub(1) else {
            unreachable!("bug: tiles of no axes");
        };
        let [along_other, along_inner] = [other, inner].map(|axis| {
            let extent = self.extent(self.kernel.axes[axis]);
            format!("(({extent} + {}) / {TILE})", TILE - 1)
        });
        self.line("if group >= params.positions { return; }");
        self.line(&format!("let above = i32(group) / {along_inner};"));
        self.line(&format!(
            "let first_inner = (i32(group) - above * {along_inner}) * {TILE};"
        ));
        self.line(&format!("let outside = above / {along_other};"));
        self.line(&format!(
            "let first_other = (above - outside * {along_other}) * {TILE};"
        ));
        let rest: Vec<usize> = (0..inner).filter(|&axis| axis != other).collect();
        self.declare_axes(&rest, "outside");
        self.fill_tiles(other, inner)?;
        self.line("workgroupBarrier();");
        self.from_tiles = true;
        let (across, step) = match fours {
            true => (TILE / LANES, LANES),
            false => (TILE, 1),
        };
        self.open_lines(across);
        self.line(&format!("let col = i32(local % {across}u) * {step};"));
        self.line(&format!("let a{inner} = first_inner + col;"));
        self.line(&format!("let a{other} = first_other + line;"));
        self.open_inside(other, inner);
        if fours {
            self.look_along(Some(inner));
        }
        self.all_phases()?;
        self.look_along(None);
        self.close();
        self.close();
        self.from_tiles = false;
        Ok(())
    }

    /// Opens the loop over a thread's lines of a tile, with so many threads side by side.
    fn open_lines(&mut self, across: u32) {
        let lines = THREADS / across;
        self.open(&format!(
            "for (var line = i32(local / {across}u); line < {TILE}; line += {lines})"
        ));
    }

    /// Opens a block for positions that exist.
    fn open_inside(&mut self, other: usize, inner: usize) {
        let [along_other, along_inner] =
            [other, inner].map(|axis| self.extent(self.kernel.axes[axis]));
        self.open(&format!(
            "if a{other} < {along_other} && a{inner} < {along_inner}"
        ));
    }

    fn fill_tiles(&mut self, other: usize, inner: usize) -> Result<(), EmitError> {
        self.open_lines(TILE);
        self.line(&format!("let col = i32(local % {TILE}u);"));
        self.line(&format!("let a{inner} = first_inner + line;"));
        self.line(&format!("let a{other} = first_other + col;"));
        self.open_inside(other, inner);
        for id in self.variant.tiled.clone() {
            let Expr::Load { buffer, index, .. } = self.expr_at(ExprId(id)) else {
                unreachable!("bug: a tile of something else than loads");
            };
            let value_type = held(self.kernel.buffers[buffer.0 as usize].dtype)?.name();
            self.functions.push_str(&format!(
                "var<workgroup> tile_{id}: array<{value_type}, {}>;\n",
                TILE * TILE_PITCH
            ));
            self.need(&[Item::Index(index)])?;
            let index = self.index_name(index);
            let name = self.buffer_name(buffer.0 as usize);
            self.line(&format!(
                "tile_{id}[line * {TILE_PITCH} + col] = load_{name}(u32({index}));"
            ));
        }
        self.close();
        self.close();
        Ok(())
    }

    /// A tiled load's value at the current lane.
    pub(super) fn tile_value(&self, id: ExprId) -> String {
        format!("tile_{}[(col + {}) * {TILE_PITCH} + line]", id.0, self.lane)
    }
}
