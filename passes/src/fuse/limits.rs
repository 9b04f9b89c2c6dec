//! What only shows once all units are known: values that have to be stored after all.

use super::Fuser;
use crate::plan::MissCode;
use cupola_ir::{NodeId, OpClass, ValueId};
use rustc_hash::{FxHashMap, FxHashSet};

impl Fuser<'_> {
    /// Repeated values that turned out not to be computed once per row have to be stored.
    pub(super) fn check_rows(&self, forced: &mut FxHashMap<ValueId, MissCode>) {
        for (value, root, own) in &self.rows {
            let mut own = own.clone();
            own.sort_unstable();
            if self.groups[root].parallel.as_ref() != Some(&own) {
                forced.insert(*value, MissCode::Recompute);
            }
        }
    }

    /// Splits units with more buffers than their device allows: stores the member that takes most of them along.
    pub(super) fn check_buffers(&self, forced: &mut FxHashMap<ValueId, MissCode>) {
        for group in self.groups.values() {
            let limit = self.context.target(group.device).max_buffers.max(4);
            let members: FxHashSet<NodeId> = group.members.iter().copied().collect();
            let mut own: FxHashMap<ValueId, FxHashSet<ValueId>> = FxHashMap::default();
            // Members stand from the root backwards, so operands come later.
            for id in group.members.iter().rev() {
                let node = self.graph.node(*id);
                let mut set = FxHashSet::default();
                for v in &node.operands {
                    let inlined =
                        members.contains(&self.graph.value(*v).node) && !self.stored[v.index()];
                    match own.get(v) {
                        Some(inner) if inlined => set.extend(inner.iter().copied()),
                        _ if self
                            .graph
                            .as_const(*v)
                            .and_then(crate::lower::uniform)
                            .is_some() => {}
                        _ => {
                            set.insert(*v);
                        }
                    }
                }
                for r in &node.results {
                    own.insert(*r, set.clone());
                }
            }
            let total = own.get(&group.root).map_or(0, FxHashSet::len);
            if total + 2 <= limit {
                continue;
            }
            let candidates = group.members.iter().skip(1).filter_map(|id| {
                let v = self.graph.node(*id).results[0];
                let free = self.graph.node(*id).op.class() == OpClass::Leaf;
                let count = own.get(&v).map_or(0, FxHashSet::len);
                (!free && count + 2 <= limit && count > 1).then_some((count, v))
            });
            if let Some((_, v)) = candidates.max() {
                forced.insert(v, MissCode::TooManyBuffers);
            }
        }
    }
}
