//! How the threads of a team join their accumulators: through workgroup memory, in subgroups, or both.

use cupola_ir::DType;
use cupola_ir::kernel::{Accum, AccumKind};

use super::reduce::{function_of, is_position};
use super::scalar::{Held, held};
use super::{EmitError, Join, Team, Writer, tree_name};

/// Largest subgroup of any device.
const MOST_SUBGROUP: u32 = 128;

/// An accumulator that the threads of a team have each a part of.
struct Partner {
    /// What its variables end in.
    name: String,
    kind: AccumKind,
    dtype: DType,
    /// Workgroup arrays of its values and, if it finds a position, of those.
    values: String,
    positions: Option<String>,
}

impl Writer<'_> {
    /// Joins the accumulators of a team's threads, and gives every thread the result.
    pub(super) fn join(
        &mut self,
        phase: usize,
        accums: &[Accum],
        team: Team,
    ) -> Result<(), EmitError> {
        if team.size() == 1 {
            return Ok(());
        }
        let partners: Vec<Partner> = self.partners(phase, accums)?;
        match team.join {
            Join::Tree => self.join_tree(&partners, team),
            Join::Within => self.join_within(&partners, team.size()),
            Join::Subgroups => {
                self.join_within(&partners, MOST_SUBGROUP)?;
                self.join_subgroups(&partners)
            }
        }
    }

    /// The accumulators of a phase with the workgroup arrays they are joined in.
    fn partners(&mut self, phase: usize, accums: &[Accum]) -> Result<Vec<Partner>, EmitError> {
        let mut used: Vec<(&'static str, usize)> = Vec::new();
        let mut slot = |value: &'static str| {
            let position = used
                .iter()
                .position(|(name, _)| *name == value)
                .unwrap_or_else(|| {
                    used.push((value, 0));
                    used.len() - 1
                });
            used[position].1 += 1;
            tree_name(value, used[position].1 - 1)
        };
        let mut partners = Vec::new();
        for (number, accum) in accums.iter().enumerate() {
            let dtype = self.kernel.dtype(accum.value);
            let values = slot(held(dtype)?.name());
            partners.push(Partner {
                name: format!("{phase}_{number}"),
                kind: accum.kind,
                dtype,
                values,
                positions: is_position(accum.kind).then(|| slot("i32")),
            });
        }
        for (value, count) in used {
            match self.trees.iter_mut().find(|(name, _)| *name == value) {
                Some(tree) => tree.1 = tree.1.max(count),
                None => self.trees.push((value, count)),
            }
        }
        Ok(partners)
    }

    /// Takes another thread's accumulator, given as WGSL, into one's own.
    fn take(&mut self, partner: &Partner, value: &str, at: &str) -> Result<(), EmitError> {
        let name = &partner.name;
        if partner.positions.is_some() {
            self.line(&format!("let far{name} = {value};"));
            self.line(&format!("let far_at{name} = {at};"));
            self.line(&format!(
                "if better{name}(far{name}, far_at{name}, best{name}, at{name}) {{ best{name} = far{name}; at{name} = far_at{name}; }}"
            ));
            return Ok(());
        }
        self.line(&format!("let far{name} = {value};"));
        let own = format!("acc{name}");
        let function = function_of(partner.kind);
        let joined = self.combine(function, partner.dtype, &own, &format!("far{name}"))?;
        self.line(&format!("{own} = {joined};"));
        Ok(())
    }

    /// Puts one's accumulators at a place of the workgroup arrays.
    fn put(&mut self, partners: &[Partner], place: &str) {
        for partner in partners {
            let (name, values) = (&partner.name, &partner.values);
            match &partner.positions {
                None => self.line(&format!("{values}[{place}] = acc{name};")),
                Some(positions) => {
                    self.line(&format!("{values}[{place}] = best{name};"));
                    self.line(&format!("{positions}[{place}] = at{name};"));
                }
            }
        }
    }

    /// Makes what is at a place of the workgroup arrays one's own.
    fn fetch(&mut self, partners: &[Partner], place: &str) {
        for partner in partners {
            let (name, values) = (&partner.name, &partner.values);
            match &partner.positions {
                None => self.line(&format!("acc{name} = {values}[{place}];")),
                Some(positions) => {
                    self.line(&format!("best{name} = {values}[{place}];"));
                    self.line(&format!("at{name} = {positions}[{place}];"));
                }
            }
        }
    }

    /// Takes what is at a place of the workgroup arrays into one's accumulators.
    fn take_from(&mut self, partners: &[Partner], place: &str) -> Result<(), EmitError> {
        for partner in partners {
            let positions = partner.positions.as_deref().unwrap_or_default();
            let (value, at) = (
                format!("{}[{place}]", partner.values),
                format!("{positions}[{place}]"),
            );
            self.take(partner, &value, &at)?;
        }
        Ok(())
    }

    fn join_tree(&mut self, partners: &[Partner], team: Team) -> Result<(), EmitError> {
        let distance = if team.across { team.rows } else { 1 };
        self.put(partners, "local");
        self.line("workgroupBarrier();");
        self.open(&format!(
            "for (var half = {}u; half > 0u; half /= 2u)",
            team.size() / 2
        ));
        self.open("if me < half");
        self.take_from(partners, &format!("local + half * {distance}u"))?;
        self.put(partners, "local");
        self.close();
        self.line("workgroupBarrier();");
        self.close();
        let first = match (team.rows, team.across) {
            (1, _) => "0".to_owned(),
            (_, true) => "row".to_owned(),
            (_, false) => format!("row * {}u", team.size()),
        };
        self.fetch(partners, &first);
        // The arrays are free for the next phase only when every thread has read its result.
        self.line("workgroupBarrier();");
        Ok(())
    }

    /// Joins in subgroups, over neighbours at most `most` apart; the distances beyond a subgroup's size are left out.
    fn join_within(&mut self, partners: &[Partner], most: u32) -> Result<(), EmitError> {
        self.open(&format!(
            "for (var apart = 1u; apart < min({most}u, wave_size); apart *= 2u)"
        ));
        for partner in partners {
            let name = &partner.name;
            let (own, at) = match partner.positions.is_some() {
                true => (format!("best{name}"), format!("at{name}")),
                false => (format!("acc{name}"), String::new()),
            };
            let value = match held(partner.dtype)? {
                Held::Bool => format!("(subgroupShuffleXor(select(0u, 1u, {own}), apart) != 0u)"),
                _ => format!("subgroupShuffleXor({own}, apart)"),
            };
            self.take(partner, &value, &format!("subgroupShuffleXor({at}, apart)"))?;
        }
        self.close();
        Ok(())
    }

    /// Joins what the subgroups of a workgroup have; every thread reads all of it.
    fn join_subgroups(&mut self, partners: &[Partner]) -> Result<(), EmitError> {
        self.open("if wave_lane == 0u");
        self.put(partners, "wave");
        self.close();
        self.line("workgroupBarrier();");
        // All in the same order, so that all have the same bits.
        self.fetch(partners, "0");
        self.open("for (var other = 1u; other < waves; other += 1u)");
        self.take_from(partners, "other")?;
        self.close();
        self.line("workgroupBarrier();");
        Ok(())
    }
}
