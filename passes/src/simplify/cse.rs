//! Equal pure nodes on equal operands are one node, but for what is computed again on purpose.

use super::Found;
use crate::autodiff::purpose;
use cupola_ir::attr::{Attr, AttrList};
use cupola_ir::{Graph, NodeId, ValueType};
use rustc_hash::{FxHashMap, FxHasher};
use std::hash::{Hash, Hasher};

/// Most bytes of a constant that are hashed and compared; larger ones are equal when they share their bytes.
const MAX_COMPARED: usize = 256;

/// Nodes seen so far, by hash.
#[derive(Default)]
pub(super) struct Known(FxHashMap<u64, Vec<NodeId>>);

impl Known {
    /// An earlier node that computes the same; remembers this one otherwise.
    pub fn equal_to(&mut self, graph: &Graph, id: NodeId) -> Option<Found> {
        let node = graph.node(id);
        if !node.op.is_pure() || !node.op.regions().is_empty() || !node.op.binds().is_empty() {
            return None;
        }
        let attrs = node.op.attrs();
        let mut hasher = FxHasher::default();
        node.op.name().hash(&mut hasher);
        node.operands.hash(&mut hasher);
        attrs.iter().for_each(|(_, a)| hash_attr(a, &mut hasher));
        let bucket = self.0.entry(hasher.finish()).or_default();
        let twin = bucket.iter().find(|other| {
            let other = graph.node(**other);
            other.operands == node.operands
                && purpose(other) == purpose(node)
                && other.op.name() == node.op.name()
                && same(&other.op.attrs(), &attrs)
                && node
                    .results
                    .iter()
                    .zip(&other.results)
                    .all(|(a, b)| graph.ty(*a) == graph.ty(*b))
        });
        match twin {
            Some(twin) => Some(Found {
                results: graph.node(*twin).results.to_vec(),
                ..Found::default()
            }),
            None => {
                bucket.push(id);
                None
            }
        }
    }
}

fn same(a: &AttrList, b: &AttrList) -> bool {
    a.len() == b.len()
        && a.iter().zip(b).all(|((_, a), (_, b))| match (a, b) {
            (Attr::Tensor(x), Attr::Tensor(y)) => {
                let shared = std::ptr::eq(x.bytes(), y.bytes());
                let small = x.bytes().len() <= MAX_COMPARED && x.strings().is_none();
                x.dtype() == y.dtype()
                    && x.shape() == y.shape()
                    && (small && x.bytes() == y.bytes() || shared && x.strings().is_none())
            }
            (Attr::Float(x), Attr::Float(y)) => x.to_bits() == y.to_bits(),
            _ => a == b,
        })
}

fn hash_attr(attr: &Attr, h: &mut FxHasher) {
    match attr {
        Attr::None => 0u8.hash(h),
        Attr::Bool(v) => v.hash(h),
        Attr::Int(v) => v.hash(h),
        Attr::Float(v) => v.to_bits().hash(h),
        Attr::Str(v) => v.hash(h),
        Attr::Ints(v) => v.hash(h),
        Attr::Floats(v) => v.iter().for_each(|x| x.to_bits().hash(h)),
        Attr::Strs(v) => v.hash(h),
        Attr::Sym(v) => v.hash(h),
        Attr::Syms(v) => v.hash(h),
        Attr::Dim(v) => v.hash(h),
        Attr::Dims(v) => v.hash(h),
        Attr::DType(v) => v.hash(h),
        Attr::Type(v) => v.hash(h),
        Attr::Types(v) => v.iter().for_each(|t: &ValueType| t.hash(h)),
        Attr::Tensor(t) => {
            t.dtype().hash(h);
            t.shape().hash(h);
            if t.bytes().len() <= MAX_COMPARED {
                t.bytes().hash(h);
            } else {
                t.bytes().as_ptr().hash(h);
            }
        }
        // Ops with regions are never merged.
        Attr::Graph(_) => {}
    }
}
