//! Optimisers as graph functions: elementwise updates of a parameter and the optimiser's memory, with scalars that the host
//! computes in f64 ([`Hyper`]) as inputs.
//!
//! Formulas, defaults and the order of operations are those of `torch.optim`. Everything is computed in f32 at least and
//! rounded to the parameter's type when it is kept.

use crate::error::{Result, TrainError};
use cupola_ir::{DType, Graph, Scalar, TensorType, ValueId};

/// The rule of an update.
#[derive(Clone, Debug, PartialEq)]
pub enum Rule {
    /// Gradient descent. With momentum `mu`: `b = mu b + (1 - dampening) g`, but `b = g` at the first step.
    Sgd {
        /// `mu`.
        momentum: f64,
        /// Part of the gradient left out of the momentum.
        dampening: f64,
        /// Moves by `g + mu b` instead of `b` (Nesterov, 1983).
        nesterov: bool,
    },
    /// Adam (Kingma and Ba, 2014).
    Adam {
        /// Decay of the mean and of the mean square of gradients.
        betas: (f64, f64),
        /// Added to the root of the corrected mean square.
        epsilon: f64,
        /// Divides by the largest mean square so far (Reddi et al., 2018).
        amsgrad: bool,
        /// Weight decay acts on the parameter, not on the gradient (Loshchilov and Hutter, 2017).
        decoupled: bool,
    },
}

/// Which parameters a [`Group`] holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Members {
    /// Those with fewer than two axes: biases, and the parameters of norms.
    Vectors,
    /// Those whose name contains one of these texts.
    Names(Vec<String>),
}

/// Settings of some of the parameters.
#[derive(Clone, Debug, PartialEq)]
pub struct Group {
    /// Which.
    pub members: Members,
    /// Factor of the learning rate.
    pub rate: f64,
    /// Weight decay; that of the optimiser when nothing is said.
    pub weight_decay: Option<f64>,
}

/// An optimiser.
#[derive(Clone, Debug, PartialEq)]
pub struct Optimiser {
    /// Rule.
    pub rule: Rule,
    /// Weight decay.
    pub weight_decay: f64,
    /// Goes up instead of down.
    pub maximise: bool,
    /// Exceptions; a parameter is in the first group that has it.
    pub groups: Vec<Group>,
}

/// A scalar input of a step that the host computes in f64 for every step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Hyper {
    /// The learning rate times a factor.
    Rate {
        /// Factor.
        factor: f64,
    },
    /// 1 at the first step, then what dampening leaves.
    Share {
        /// Dampening.
        dampening: f64,
    },
    /// The learning rate times a factor by `1 - beta1^t`.
    StepSize {
        /// Factor.
        factor: f64,
        /// `beta1`.
        beta: f64,
    },
    /// `sqrt(1 - beta2^t)`.
    Correction {
        /// `beta2`.
        beta: f64,
    },
    /// `1 - rate * weight_decay`.
    Keep {
        /// Factor of the learning rate.
        factor: f64,
        /// Weight decay.
        decay: f64,
    },
}

impl Hyper {
    /// The value at step `t`, counted from 1, with the learning rate `lr`.
    pub fn value(self, t: u64, lr: f64) -> f64 {
        let power = |beta: f64| beta.powf(t.max(1) as f64);
        match self {
            Hyper::Rate { factor } => lr * factor,
            Hyper::Share { .. } if t <= 1 => 1.0,
            Hyper::Share { dampening } => 1.0 - dampening,
            Hyper::StepSize { factor, beta } => lr * factor / (1.0 - power(beta)),
            Hyper::Correction { beta } => (1.0 - power(beta)).sqrt(),
            Hyper::Keep { factor, decay } => 1.0 - lr * factor * decay,
        }
    }
}

impl Optimiser {
    /// Gradient descent without momentum and weight decay.
    pub fn sgd() -> Optimiser {
        Optimiser::new(Rule::Sgd {
            momentum: 0.0,
            dampening: 0.0,
            nesterov: false,
        })
    }

    /// Gradient descent with momentum.
    pub fn momentum(momentum: f64) -> Optimiser {
        Optimiser::new(Rule::Sgd {
            momentum,
            dampening: 0.0,
            nesterov: false,
        })
    }

    /// Adam with decays 0.9 and 0.999 and epsilon 1e-8.
    pub fn adam() -> Optimiser {
        Optimiser::new(Rule::Adam {
            betas: (0.9, 0.999),
            epsilon: 1e-8,
            amsgrad: false,
            decoupled: false,
        })
    }

    /// Adam with decoupled weight decay of 0.01.
    pub fn adamw() -> Optimiser {
        let rule = Rule::Adam {
            betas: (0.9, 0.999),
            epsilon: 1e-8,
            amsgrad: false,
            decoupled: true,
        };
        Optimiser {
            weight_decay: 1e-2,
            ..Optimiser::new(rule)
        }
    }

    /// A rule without weight decay.
    pub fn new(rule: Rule) -> Optimiser {
        Optimiser {
            rule,
            weight_decay: 0.0,
            maximise: false,
            groups: vec![],
        }
    }

    /// The same with other weight decay.
    pub fn weight_decay(self, weight_decay: f64) -> Optimiser {
        Optimiser {
            weight_decay,
            ..self
        }
    }

    /// The same with no weight decay for biases and the parameters of norms.
    pub fn no_decay_of_vectors(mut self) -> Optimiser {
        self.groups.push(Group {
            members: Members::Vectors,
            rate: 1.0,
            weight_decay: Some(0.0),
        });
        self
    }

    /// Checks the settings.
    ///
    /// # Errors
    /// [`TrainError::Options`] for what `torch.optim` refuses.
    pub fn check(&self) -> Result<()> {
        let sound = match self.rule {
            Rule::Sgd {
                momentum,
                dampening,
                nesterov,
            } => {
                if nesterov && (momentum <= 0.0 || dampening != 0.0) {
                    let what = "Nesterov's momentum needs a momentum and no dampening";
                    return Err(TrainError::Options(what.into()));
                }
                match momentum >= 0.0 && dampening.is_finite() {
                    true => Ok(()),
                    false => Err("momentum is 0 or more, dampening a number"),
                }
            }
            Rule::Adam { betas, epsilon, .. } => {
                let part = |b: f64| (0.0..1.0).contains(&b);
                match part(betas.0) && part(betas.1) && epsilon >= 0.0 {
                    true => Ok(()),
                    false => Err("betas are from 0 to below 1, eps is 0 or more"),
                }
            }
        };
        let decays = self.groups.iter().filter_map(|g| g.weight_decay);
        let decays = decays.chain([self.weight_decay]).all(|d| d >= 0.0);
        let others = match decays && self.groups.iter().all(|g| g.rate >= 0.0) {
            true => Ok(()),
            false => Err("weight_decay and the rates of groups are 0 or more"),
        };
        let checked = sound.and(others);
        checked.map_err(|what: &str| TrainError::Options(what.into()))
    }

    /// Position of the group of a parameter.
    fn group(&self, name: &str, ty: &TensorType) -> Option<usize> {
        self.groups.iter().position(|g| match &g.members {
            Members::Vectors => ty.rank() < 2,
            Members::Names(parts) => parts.iter().any(|p| name.contains(p.as_str())),
        })
    }

    /// Names of the memory that is kept for each parameter; a slot's name is this, `/` and the parameter's.
    pub fn memory(&self) -> &'static [&'static str] {
        match self.rule {
            Rule::Sgd { momentum: 0.0, .. } => &[],
            Rule::Sgd { .. } => &["sgd.momentum"],
            Rule::Adam { amsgrad: false, .. } => &["adam.m", "adam.v"],
            Rule::Adam { .. } => &["adam.m", "adam.v", "adam.vmax"],
        }
    }

    /// Appends one update: the new parameter and the new memory (in the order of [`Optimiser::memory`]), all of the old types.
    ///
    /// # Errors
    /// None in practice.
    pub(crate) fn update(
        &self,
        g: &mut Graph,
        hypers: &mut Hypers,
        name: &str,
        p: ValueId,
        grad: ValueId,
        memory: &[ValueId],
    ) -> Result<(ValueId, Vec<ValueId>)> {
        let group = self.group(name, &g.tensor(p));
        let settings = group.map(|i| &self.groups[i]);
        let update = Update {
            suffix: group.map_or(String::new(), |i| format!(".{}", i + 1)),
            factor: settings.map_or(1.0, |s| s.rate),
            decay: settings
                .and_then(|s| s.weight_decay)
                .unwrap_or(self.weight_decay),
        };
        let wide = g.widen(p)?;
        let old: Vec<ValueId> = memory
            .iter()
            .map(|m| g.cast_like(*m, wide))
            .collect::<Result<_, _>>()?;
        let mut grad = g.cast_like(grad, wide)?;
        if self.maximise {
            grad = g.unary(Scalar::Neg, grad)?;
        }
        let (new, kept) = match self.rule {
            Rule::Sgd {
                momentum,
                dampening,
                nesterov,
            } => update.sgd(
                g,
                hypers,
                [wide, grad],
                &old,
                [momentum, dampening],
                nesterov,
            )?,
            Rule::Adam {
                betas,
                epsilon,
                decoupled,
                ..
            } => update.adam(g, hypers, [wide, grad], &old, (betas, epsilon), decoupled)?,
        };
        let kept = kept.iter().zip(memory).map(|(k, m)| g.cast_like(*k, *m));
        let kept = kept.collect::<Result<_, _>>()?;
        Ok((g.cast_like(new, p)?, kept))
    }
}

/// The scalar inputs that updates have asked for.
#[derive(Clone, Debug, Default)]
pub(crate) struct Hypers {
    pub(crate) all: Vec<(String, Hyper, DType, ValueId)>,
}

impl Hypers {
    /// The scalar of this name in the type of `like`.
    fn get(&mut self, g: &mut Graph, name: &str, hyper: Hyper, like: ValueId) -> Result<ValueId> {
        let known = self.all.iter().find(|(n, ..)| n == name).map(|(.., v)| *v);
        let value = match known {
            Some(v) => v,
            None => {
                let dtype = match g.dtype(like) {
                    DType::F64 => DType::F64,
                    _ => DType::F32,
                };
                let v = g.input(name, TensorType::scalar(dtype))?;
                self.all.push((name.into(), hyper, dtype, v));
                v
            }
        };
        Ok(g.cast_like(value, like)?)
    }
}

/// What an update of one parameter depends on.
struct Update {
    suffix: String,
    factor: f64,
    decay: f64,
}

impl Update {
    fn name(&self, of: &str) -> String {
        format!("{of}{}", self.suffix)
    }

    /// `grad + decay * p`.
    fn coupled(&self, g: &mut Graph, p: ValueId, grad: ValueId) -> Result<ValueId> {
        if self.decay == 0.0 {
            return Ok(grad);
        }
        let pull = g.scale(p, self.decay)?;
        Ok(g.binary(Scalar::Add, grad, pull)?)
    }

    fn sgd(
        &self,
        g: &mut Graph,
        hypers: &mut Hypers,
        [p, grad]: [ValueId; 2],
        memory: &[ValueId],
        [momentum, dampening]: [f64; 2],
        nesterov: bool,
    ) -> Result<(ValueId, Vec<ValueId>)> {
        let mut by = self.coupled(g, p, grad)?;
        let mut kept = vec![];
        if let [old] = memory {
            let fresh = match dampening {
                0.0 => by,
                _ => {
                    let share = Hyper::Share { dampening };
                    let share = hypers.get(g, "sgd.share", share, p)?;
                    g.binary(Scalar::Mul, by, share)?
                }
            };
            let old = g.scale(*old, momentum)?;
            let b = g.binary(Scalar::Add, old, fresh)?;
            kept.push(b);
            by = match nesterov {
                true => {
                    let ahead = g.scale(b, momentum)?;
                    g.binary(Scalar::Add, by, ahead)?
                }
                false => b,
            };
        }
        let factor = self.factor;
        let rate = hypers.get(g, &self.name("lr"), Hyper::Rate { factor }, p)?;
        let by = g.binary(Scalar::Mul, rate, by)?;
        Ok((g.binary(Scalar::Sub, p, by)?, kept))
    }

    fn adam(
        &self,
        g: &mut Graph,
        hypers: &mut Hypers,
        [mut p, mut grad]: [ValueId; 2],
        memory: &[ValueId],
        (betas, epsilon): ((f64, f64), f64),
        decoupled: bool,
    ) -> Result<(ValueId, Vec<ValueId>)> {
        let (factor, decay) = (self.factor, self.decay);
        let step = Hyper::StepSize {
            factor,
            beta: betas.0,
        };
        let step = hypers.get(g, &self.name("adam.step_size"), step, p)?;
        let correction = Hyper::Correction { beta: betas.1 };
        let correction = hypers.get(g, "adam.correction", correction, p)?;
        if !decoupled {
            grad = self.coupled(g, p, grad)?;
        } else if decay != 0.0 {
            let keep = Hyper::Keep { factor, decay };
            let keep = hypers.get(g, &self.name("adam.keep"), keep, p)?;
            p = g.binary(Scalar::Mul, p, keep)?;
        }
        let (m, v) = (memory[0], memory[1]);
        let ahead = g.binary(Scalar::Sub, grad, m)?;
        let ahead = g.scale(ahead, 1.0 - betas.0)?;
        let m = g.binary(Scalar::Add, m, ahead)?;
        let square = g.binary(Scalar::Mul, grad, grad)?;
        let square = g.scale(square, 1.0 - betas.1)?;
        let v = g.scale(v, betas.1)?;
        let v = g.binary(Scalar::Add, v, square)?;
        let mut kept = vec![m, v];
        let mut spread = v;
        if let Some(most) = memory.get(2) {
            spread = g.binary(Scalar::Max, *most, v)?;
            kept.push(spread);
        }
        let root = g.unary(Scalar::Sqrt, spread)?;
        let root = g.binary(Scalar::Div, root, correction)?;
        let epsilon = g.number_like(epsilon, root)?;
        let root = g.binary(Scalar::Add, root, epsilon)?;
        let by = g.binary(Scalar::Div, m, root)?;
        let by = g.binary(Scalar::Mul, step, by)?;
        Ok((g.binary(Scalar::Sub, p, by)?, kept))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn corrections_are_those_of_the_step() {
        let size = Hyper::StepSize {
            factor: 2.0,
            beta: 0.9,
        };
        assert!((size.value(1, 0.1) - 2.0).abs() < 1e-12);
        assert!((size.value(2, 0.1) - 0.2 / 0.19).abs() < 1e-12);
        let share = Hyper::Share { dampening: 0.25 };
        assert_eq!([share.value(1, 1.0), share.value(2, 1.0)], [1.0, 0.75]);
        let keep = Hyper::Keep {
            factor: 1.0,
            decay: 0.5,
        };
        assert_eq!(keep.value(9, 0.1), 0.95);
    }

    #[test]
    fn settings_that_make_no_sense_are_refused() {
        let nesterov = Rule::Sgd {
            momentum: 0.0,
            dampening: 0.0,
            nesterov: true,
        };
        assert!(Optimiser::new(nesterov).check().is_err());
        assert!(Optimiser::adam().weight_decay(-1.0).check().is_err());
        assert!(Optimiser::adam().weight_decay(f64::NAN).check().is_err());
        assert!(Optimiser::adamw().no_decay_of_vectors().check().is_ok());
    }
}
