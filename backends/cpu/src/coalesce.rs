//! Merges neighbouring parallel axes that every access runs through as if they were one.
//!
//! Rows become longer, so that more of them is whole vectors. Positions keep their row-major numbers: a launch divides
//! the merged axes as it would the others.

use cupola_ir::Dim;
use cupola_ir::kernel::{AxisId, Extent, Index, IndexId, Item, Kernel, Phase};

/// The kernel with as few parallel axes as its accesses allow. Run-time sizes stay as they are, so axes are merged only
/// if their common extent is a constant or among those.
pub(crate) fn coalesce(kernel: Kernel) -> Kernel {
    let mut kernel = kernel;
    while let Some((run, extent)) = longest_run(&kernel) {
        kernel = merge(&kernel, run, extent);
    }
    kernel
}

/// Parallel axes `first..=last`.
type Run = std::ops::RangeInclusive<usize>;

/// How an index depends on the parallel axes.
struct Form {
    /// Factor of each axis; `None` where it is no product.
    factors: Vec<Option<Dim>>,
    /// The index itself, when it depends on no axis and no data.
    value: Option<Dim>,
}

/// Axes that can become one, the most of them first, and their extent.
fn longest_run(kernel: &Kernel) -> Option<(Run, Extent)> {
    let count = kernel.parallel;
    let forms = forms(kernel);
    let roots = roots(kernel);
    let joined: Vec<bool> = (1..count)
        .map(|inner| {
            roots
                .iter()
                .all(|r| joins(kernel, &forms[r.0 as usize], inner))
        })
        .collect();
    let runs = (0..count).flat_map(|first| (first + 1..count).map(move |last| (first, last)));
    let fits = |(first, last): (usize, usize)| {
        let extent = joined[first..last].iter().all(|j| *j).then(|| {
            let dims: Vec<Dim> = (first..=last)
                .map(|a| dim(kernel, kernel.axes[a]))
                .collect();
            Dim::product(&dims)
        })?;
        Some((first..=last, known(kernel, &extent)?))
    };
    runs.filter_map(fits)
        .max_by_key(|(run, _)| run.end() - run.start())
}

fn dim(kernel: &Kernel, extent: Extent) -> Dim {
    match extent {
        Extent::Const(c) => c.into(),
        Extent::Size(s) => kernel.sizes[s as usize].clone(),
    }
}

fn known(kernel: &Kernel, dim: &Dim) -> Option<Extent> {
    let size = || kernel.sizes.iter().position(|d| d == dim);
    let constant = dim.as_const().map(Extent::Const);
    constant.or_else(|| size().map(|at| Extent::Size(at as u32)))
}

/// Whether a step along the axis before `inner` is a step of all of `inner`.
fn joins(kernel: &Kernel, form: &Form, inner: usize) -> bool {
    let (Some(outer), Some(step)) = (&form.factors[inner - 1], &form.factors[inner]) else {
        return false;
    };
    *outer == step.clone() * dim(kernel, kernel.axes[inner])
}

/// Forms of all indices.
fn forms(kernel: &Kernel) -> Vec<Form> {
    let mut all: Vec<Form> = vec![];
    for index in &kernel.indices {
        let at = |i: &IndexId| &all[i.0 as usize];
        let of_both = |x: &IndexId, y: &IndexId, f: &dyn Fn(&Dim, &Dim) -> Option<Dim>| {
            let pairs = at(x).factors.iter().zip(&at(y).factors);
            pairs.map(|(a, b)| f(a.as_ref()?, b.as_ref()?)).collect()
        };
        let none = |a: &Dim, b: &Dim| (a.is(0) && b.is(0)).then_some(Dim::ZERO);
        let values = |x: &IndexId, y: &IndexId| at(x).value.clone().zip(at(y).value.clone());
        let absent = || vec![Some(Dim::ZERO); kernel.parallel];
        let form = match index {
            Index::Const(c) => Form {
                factors: absent(),
                value: Some((*c).into()),
            },
            Index::Size(s) => Form {
                factors: absent(),
                value: Some(kernel.sizes[*s as usize].clone()),
            },
            Index::Axis(a) => {
                let mut factors = absent();
                if let Some(own) = factors.get_mut(a.0 as usize) {
                    *own = Some(Dim::ONE);
                }
                Form {
                    factors,
                    value: None,
                }
            }
            Index::Add(x, y) => Form {
                factors: of_both(x, y, &|a, b| Some(a.clone() + b.clone())),
                value: values(x, y).map(|(a, b)| a + b),
            },
            Index::Sub(x, y) => Form {
                factors: of_both(x, y, &|a, b| Some(a.clone() - b.clone())),
                value: values(x, y).map(|(a, b)| a - b),
            },
            Index::Mul(x, y) => Form {
                factors: match (&at(x).value, &at(y).value) {
                    (Some(v), _) => of_both(x, y, &|_, b| Some(b.clone() * v.clone())),
                    (None, Some(v)) => of_both(x, y, &|a, _| Some(a.clone() * v.clone())),
                    (None, None) => of_both(x, y, &none),
                },
                value: values(x, y).map(|(a, b)| a * b),
            },
            Index::Div(x, y) | Index::Rem(x, y) | Index::Min(x, y) | Index::Max(x, y) => Form {
                factors: of_both(x, y, &none),
                value: None,
            },
            // What the element value depends on is up to its own load.
            Index::Checked { extent, .. } => Form {
                factors: of_both(extent, extent, &none),
                value: None,
            },
        };
        all.push(form);
    }
    all
}

/// Indices that something other than another index uses.
fn roots(kernel: &Kernel) -> Vec<IndexId> {
    let mut all = vec![];
    for expr in &kernel.exprs {
        expr.for_each_operand(|operand| {
            if let Item::Index(i) = operand {
                all.push(i);
            }
        });
    }
    for phase in &kernel.phases {
        if let Phase::Store { stores, .. } = phase {
            all.extend(stores.iter().map(|s| s.index));
        }
    }
    all
}

/// The kernel with these axes as one, of this extent.
fn merge(kernel: &Kernel, run: Run, extent: Extent) -> Kernel {
    let (first, last) = (*run.start(), *run.end());
    let mut out = kernel.clone();
    out.axes.splice(run, [extent]);
    out.parallel -= last - first;
    let renamed = |a: AxisId| match a.0 as usize {
        at if at >= last => AxisId((at - (last - first)) as u32),
        _ => a,
    };
    out.indices.clear();
    let mut ids: Vec<IndexId> = vec![];
    for index in &kernel.indices {
        let id = match *index {
            Index::Axis(a) if (first..last).contains(&(a.0 as usize)) => out.index(Index::Const(0)),
            Index::Axis(a) => out.index(Index::Axis(renamed(a))),
            other => simplified(&mut out, other, &ids),
        };
        ids.push(id);
    }
    let new = |i: IndexId| ids[i.0 as usize];
    for expr in &mut out.exprs {
        *expr = expr.map_indices(new);
    }
    for phase in &mut out.phases {
        let (Phase::Reduce { axes, .. } | Phase::Store { axes, .. }) = &mut *phase;
        axes.iter_mut().for_each(|a| *a = renamed(*a));
        if let Phase::Store { stores, .. } = phase {
            stores.iter_mut().for_each(|s| s.index = new(s.index));
        }
    }
    out
}

/// An index over new operands, without the sums and products that an axis left behind when it became 0.
fn simplified(out: &mut Kernel, index: Index, ids: &[IndexId]) -> IndexId {
    let is = |out: &Kernel, i: IndexId, c: i64| out.indices[i.0 as usize] == Index::Const(c);
    let new = match index.map_indices(|i| ids[i.0 as usize]) {
        Index::Add(x, y) if is(out, x, 0) => return y,
        Index::Add(x, y) if is(out, y, 0) => return x,
        Index::Mul(x, y) if is(out, x, 0) || is(out, y, 0) => Index::Const(0),
        other => other,
    };
    out.index(new)
}

#[cfg(test)]
mod tests {
    use super::*;
    use cupola_ir::kernel::{text, verify};

    /// The parallel extents that are left.
    fn parallel(source: &str) -> Vec<Extent> {
        let kernel = coalesce(text::parse(source).expect("a kernel"));
        verify(&kernel).expect("still well formed");
        kernel.axes[..kernel.parallel].to_vec()
    }

    /// `y[a0, a1, a2] = x[index] + x[index]` over axes of these extents.
    fn copy(axes: [&str; 3], index: &str) -> String {
        let [a, b, c] = axes;
        format!(
            "kernel @copy {{\n  s0 = $n\n  s1 = 4*$n\n  b0 = read f32[s1]\n  b1 = write f32[s1]\n  \
             a0 = parallel {a}\n  a1 = parallel {b}\n  a2 = parallel {c}\n{index}  \
             e0 = load b0[i99]\n  store [] {{b1[i99] = e0}}\n}}\n"
        )
        .replace("i99", &last(index))
    }

    fn last(index: &str) -> String {
        format!("i{}", index.lines().count() - 1)
    }

    const DENSE: &str = "  i0 = a0\n  i1 = a1\n  i2 = a2\n  i3 = 2\n  i4 = s0\n  i5 = i0 * i3\n  i6 = i5 + i1\n  \
                         i7 = i6 * i4\n  i8 = i7 + i2\n";

    #[test]
    fn dense_axes_become_one() {
        let merged = parallel(&copy(["2", "2", "s0"], DENSE));
        assert_eq!(merged, [Extent::Size(1)]);
    }

    #[test]
    fn an_unknown_product_keeps_an_axis() {
        let source = copy(["2", "2", "s0"], DENSE).replace("4*$n", "9*$n");
        assert_eq!(parallel(&source), [Extent::Const(4), Extent::Size(0)]);
    }

    #[test]
    fn other_orders_and_remainders_stay() {
        let transposed = "  i0 = a0\n  i1 = a1\n  i2 = a2\n  i3 = 4\n  i4 = 2\n  i5 = i2 * i3\n  i6 = i1 * i4\n  \
                          i7 = i5 + i6\n  i8 = i7 + i0\n";
        assert_eq!(parallel(&copy(["2", "2", "2"], transposed)).len(), 3);
        let wrapped = format!("{DENSE}  i9 = 5\n  i10 = i8 % i9\n");
        assert_eq!(parallel(&copy(["2", "2", "s0"], &wrapped)).len(), 3);
    }

    #[test]
    fn a_value_per_row_stays_one_per_row() {
        let source = "kernel @bias {\n  b0 = read f32[3]\n  b1 = write f32[294]\n  a0 = parallel 2\n  \
                      a1 = parallel 3\n  a2 = parallel 7\n  a3 = parallel 7\n  i0 = a0\n  i1 = a1\n  i2 = a2\n  \
                      i3 = a3\n  i4 = 3\n  i5 = 7\n  i6 = i0 * i4\n  i7 = i6 + i1\n  i8 = i7 * i5\n  i9 = i8 + i2\n  \
                      i10 = i9 * i5\n  i11 = i10 + i3\n  e0 = load b0[i1]\n  store [] {b1[i11] = e0}\n}\n";
        let extents = [2, 3, 49].map(Extent::Const);
        assert_eq!(parallel(source), extents);
    }
}
