//! Vector programs as Cranelift functions: vectors of 128 bits, several to a register where it has more lanes, and
//! lane by lane where the machine has no vector form of an operation.
//!
//! The function is `fn(arguments, begin, end)` where `arguments` points to [`crate::jit::Arguments`].

use super::helpers::Helper;
use crate::vector::{
    BinOp, CmpOp, Conv, Elem, Inst, Op, Pattern, Place, Program, Reg, Type, UnOp, Var,
};
use cranelift_codegen::ir::condcodes::{FloatCC, IntCC};
use cranelift_codegen::ir::types::{
    self, F32, F32X4, F64, F64X2, I8, I8X16, I16, I16X8, I32, I32X4, I64, I64X2,
};
use cranelift_codegen::ir::{
    AbiParam, AtomicRmwOp, BlockArg, ConstantData, Endianness, Function, InstBuilder, MemFlagsData,
    SigRef, Signature, Value,
};
use cranelift_codegen::isa::{CallConv, TargetFrontendConfig};
use cranelift_frontend::{FunctionBuilder, FunctionBuilderContext, Variable};
use rustc_hash::FxHashMap;

/// Bytes of a machine vector.
const VECTOR: u32 = 16;

/// The signature of compiled programs.
pub(crate) fn signature(call_conv: CallConv) -> Signature {
    let mut s = Signature::new(call_conv);
    s.params = vec![AbiParam::new(I64); 3];
    s
}

/// Writes a program into an empty function of [`signature`].
pub(crate) fn emit(
    program: &Program,
    function: &mut Function,
    context: &mut FunctionBuilderContext,
    config: TargetFrontendConfig,
    has_fma: bool,
) {
    let mut f = FunctionBuilder::new(function, context);
    let entry = f.create_block();
    f.append_block_params_for_function_params(entry);
    f.switch_to_block(entry);
    let [arguments, begin, end] = [0, 1, 2].map(|i| f.block_params(entry)[i]);
    let flags = plain();
    let pointer = |f: &mut FunctionBuilder, at| f.ins().load(I64, flags, arguments, at);
    let buffers = pointer(&mut f, 0);
    let sizes = pointer(&mut f, 8);
    let fault_word = pointer(&mut f, 16);
    let fault = f.declare_var(I32);
    let none = f.ins().iconst(I32, 0);
    f.def_var(fault, none);
    let mut e = Emit {
        program,
        f,
        buffers,
        sizes,
        range: [begin, end],
        fault,
        faults: false,
        values: vec![],
        spans: vec![(0, 0); program.registers.len()],
        vars: vec![],
        signatures: FxHashMap::default(),
        constants: FxHashMap::default(),
        has_fma,
    };
    for ty in &program.vars {
        let one = e.part_type(*ty);
        let all = (0..e.parts(*ty)).map(|_| e.f.declare_var(one)).collect();
        e.vars.push(all);
    }
    e.block(&program.body);
    if e.faults {
        e.report(fault_word);
    }
    e.f.ins().return_(&[]);
    e.f.seal_all_blocks();
    e.f.finalize(config);
}

/// Accesses that do not trap and need no alignment.
fn plain() -> MemFlagsData {
    MemFlagsData::new().with_notrap()
}

/// Bits keep their place in memory order.
fn bits() -> MemFlagsData {
    MemFlagsData::new().with_endianness(Endianness::Little)
}

fn scalar_type(elem: Elem) -> types::Type {
    match elem {
        Elem::I8 | Elem::M8 | Elem::M16 | Elem::M32 | Elem::M64 => I8,
        Elem::I16 => I16,
        Elem::I32 => I32,
        Elem::I64 => I64,
        Elem::F32 => F32,
        Elem::F64 => F64,
    }
}

fn vector_type(elem: Elem) -> types::Type {
    match elem {
        Elem::F32 => F32X4,
        Elem::F64 => F64X2,
        _ => int_vector(elem.bits()),
    }
}

fn int_vector(bits: u32) -> types::Type {
    match bits {
        8 => I8X16,
        16 => I16X8,
        32 => I32X4,
        _ => I64X2,
    }
}

type Parts = Vec<Value>;

struct Emit<'a> {
    program: &'a Program,
    f: FunctionBuilder<'a>,
    buffers: Value,
    sizes: Value,
    range: [Value; 2],
    fault: Variable,
    faults: bool,
    values: Vec<Value>,
    spans: Vec<(u32, u32)>,
    vars: Vec<Vec<Variable>>,
    signatures: FxHashMap<Helper, SigRef>,
    constants: FxHashMap<(types::Type, [u8; 16]), cranelift_codegen::ir::Constant>,
    has_fma: bool,
}

impl Emit<'_> {
    /// Machine registers of a type.
    fn parts(&self, ty: Type) -> usize {
        match ty.lanes {
            1 => 1,
            n => (u32::from(n) * ty.elem.bits() / 8 / VECTOR).max(1) as usize,
        }
    }

    fn part_type(&self, ty: Type) -> types::Type {
        match ty.lanes {
            1 => scalar_type(ty.elem),
            _ => vector_type(ty.elem),
        }
    }

    fn ty(&self, reg: Reg) -> Type {
        self.program.ty(reg)
    }

    fn get(&self, reg: Reg) -> Parts {
        let (start, len) = self.spans[reg.0 as usize];
        self.values[start as usize..(start + len) as usize].to_vec()
    }

    /// The value of a register of one lane.
    fn one(&self, reg: Reg) -> Value {
        self.values[self.spans[reg.0 as usize].0 as usize]
    }

    fn set(&mut self, reg: Reg, parts: &[Value]) {
        self.spans[reg.0 as usize] = (self.values.len() as u32, parts.len() as u32);
        self.values.extend_from_slice(parts);
    }

    fn block(&mut self, block: &[Inst]) {
        for inst in block {
            match inst {
                Inst::Let(reg, op) => {
                    let parts = self.op(op, self.ty(*reg));
                    self.set(*reg, &parts);
                }
                Inst::Set(var, reg) => {
                    let parts = self.get(*reg);
                    for (v, x) in self.vars[var.0 as usize].clone().into_iter().zip(parts) {
                        self.f.def_var(v, x);
                    }
                }
                Inst::Store { place, value } => self.store(place, *value),
                Inst::Call(helper, args) => {
                    let lanes = self.ty(args[0]).lanes;
                    let args: Vec<Vec<Value>> = args.iter().map(|a| self.lanes(*a)).collect();
                    for k in 0..usize::from(lanes) {
                        let args: Vec<Value> = args.iter().map(|a| a[k]).collect();
                        self.call(*helper, &args);
                    }
                }
                Inst::Fault(mask, fault) => {
                    let any = self.any(*mask);
                    let code = self.f.ins().iconst(I32, *fault as i64);
                    let none = self.f.ins().iconst(I32, 0);
                    let code = self.f.ins().select(any, code, none);
                    let old = self.f.use_var(self.fault);
                    let new = self.f.ins().bor(old, code);
                    self.f.def_var(self.fault, new);
                    self.faults = true;
                }
                Inst::Loop {
                    counter,
                    from,
                    to,
                    step,
                    body,
                } => self.counted(*counter, *from, *to, *step, body),
                Inst::If { cond, body } => {
                    let (then, after) = (self.f.create_block(), self.f.create_block());
                    let cond = self.one(*cond);
                    self.f.ins().brif(cond, then, &[], after, &[]);
                    self.f.switch_to_block(then);
                    self.block(body);
                    self.f.ins().jump(after, &[]);
                    self.f.switch_to_block(after);
                }
            }
        }
    }

    /// A loop that is only reached when it runs at least once.
    fn counted(&mut self, counter: Reg, from: Reg, to: Reg, step: i64, body: &[Inst]) {
        let (head, after) = (self.f.create_block(), self.f.create_block());
        let at = self.f.append_block_param(head, I64);
        let from = self.one(from);
        self.f.ins().jump(head, &[BlockArg::Value(from)]);
        self.f.switch_to_block(head);
        self.set(counter, &[at]);
        self.block(body);
        let next = self.f.ins().iadd_imm_s(at, step);
        let to = self.one(to);
        let more = self.f.ins().icmp(IntCC::SignedLessThan, next, to);
        self.f
            .ins()
            .brif(more, head, &[BlockArg::Value(next)], after, &[]);
        self.f.switch_to_block(after);
    }

    /// Adds the fault bits to the launch's word.
    fn report(&mut self, word: Value) {
        let (some, after) = (self.f.create_block(), self.f.create_block());
        let fault = self.f.use_var(self.fault);
        self.f.ins().brif(fault, some, &[], after, &[]);
        self.f.switch_to_block(some);
        self.f
            .ins()
            .atomic_rmw(I32, plain(), AtomicRmwOp::Or, word, fault);
        self.f.ins().jump(after, &[]);
        self.f.switch_to_block(after);
    }

    fn op(&mut self, op: &Op, ty: Type) -> Parts {
        match op {
            Op::Const(bits) => self.constant(*bits, ty),
            Op::Size(s) => vec![self.f.ins().load(I64, plain(), self.sizes, *s as i32 * 8)],
            Op::Buffer(b) => vec![self.f.ins().load(I64, plain(), self.buffers, *b as i32 * 8)],
            Op::Begin => vec![self.range[0]],
            Op::End => vec![self.range[1]],
            Op::Splat(x) => self.splat(*x, ty),
            Op::Ramp(base, step) => self.ramp(*base, *step, ty),
            Op::Pack(all) => {
                let all: Vec<Value> = all.iter().map(|r| self.one(*r)).collect();
                self.pack(ty, &all)
            }
            Op::Extract(x, k) => vec![self.extract(*x, usize::from(*k))],
            Op::Unary(f, x) => self.unary(*f, *x, ty),
            Op::Binary(f, x, y) => self.binary(*f, *x, *y, ty),
            Op::Shift(f, x, n) => {
                let parts = self.get(*x);
                parts
                    .into_iter()
                    .map(|p| self.shift(*f, p, i64::from(*n)))
                    .collect()
            }
            Op::Cmp(f, x, y) => self.cmp(*f, *x, *y),
            Op::Select(m, x, y) => self.select(*m, *x, *y, ty),
            Op::Fma(x, y, z) => self.fma(*x, *y, *z),
            Op::Convert(f, x) => self.convert(*f, *x, ty),
            Op::Load(place, guard) => self.load(place, *guard, ty),
            Op::Call(helper, args) => {
                let args: Vec<Vec<Value>> = args.iter().map(|a| self.lanes(*a)).collect();
                let lanes = usize::from(ty.lanes);
                let results: Vec<Value> = (0..lanes)
                    .map(|k| {
                        let args: Vec<Value> = args.iter().map(|a| a[k]).collect();
                        self.call(*helper, &args)
                    })
                    .map(|v| v.unwrap_or_else(|| unreachable!("bug: {helper:?} gives no value")))
                    .collect();
                self.pack(ty, &results)
            }
            Op::Reduce(f, x) => vec![self.reduce(*f, *x)],
            Op::Get(v) => self.variable(*v),
        }
    }

    fn variable(&mut self, var: Var) -> Parts {
        let vars = self.vars[var.0 as usize].clone();
        vars.into_iter().map(|v| self.f.use_var(v)).collect()
    }

    fn constant(&mut self, bits: u64, ty: Type) -> Parts {
        if ty.lanes == 1 {
            return vec![match ty.elem {
                Elem::F32 => self.f.ins().f32const(f32::from_bits(bits as u32)),
                Elem::F64 => self.f.ins().f64const(f64::from_bits(bits)),
                e => self
                    .f
                    .ins()
                    .iconst(scalar_type(e), low(bits, scalar_type(e))),
            }];
        }
        let size = (ty.elem.bits() / 8) as usize;
        let mut bytes = [0u8; 16];
        for lane in bytes.chunks_mut(size) {
            lane.copy_from_slice(&bits.to_le_bytes()[..size]);
        }
        let x = self.vector_constant(vector_type(ty.elem), bytes);
        vec![x; self.parts(ty)]
    }

    fn vector_constant(&mut self, ty: types::Type, bytes: [u8; 16]) -> Value {
        let handle = match self.constants.get(&(ty, bytes)) {
            Some(h) => *h,
            None => {
                let data = ConstantData::from(&bytes[..]);
                let h = self.f.func.dfg.constants.insert(data);
                self.constants.insert((ty, bytes), h);
                h
            }
        };
        self.f.ins().vconst(ty, handle)
    }

    fn splat(&mut self, x: Reg, ty: Type) -> Parts {
        let from = self.ty(x);
        let mut v = self.one(x);
        if from.elem.is_mask() {
            // 1 becomes all ones.
            v = self.f.ins().ineg(v);
            let lane = scalar_type(Elem::int(ty.elem.bits()));
            if lane != I8 {
                v = self.f.ins().sextend(lane, v);
            }
        }
        let part = self.f.ins().splat(vector_type(ty.elem), v);
        vec![part; self.parts(ty)]
    }

    fn ramp(&mut self, base: Reg, step: i64, ty: Type) -> Parts {
        let base = self.one(base);
        let base = self.f.ins().splat(I64X2, base);
        (0..self.parts(ty) as i64)
            .map(|p| {
                let mut bytes = [0u8; 16];
                for (lane, chunk) in bytes.chunks_mut(8).enumerate() {
                    let offset = (p * 2 + lane as i64).wrapping_mul(step);
                    chunk.copy_from_slice(&offset.to_le_bytes());
                }
                let offsets = self.vector_constant(I64X2, bytes);
                self.f.ins().iadd(base, offsets)
            })
            .collect()
    }

    /// One lane as a scalar; of a mask as 0 or 1.
    fn extract(&mut self, x: Reg, k: usize) -> Value {
        let ty = self.ty(x);
        let parts = self.get(x);
        self.extract_from(&parts, ty, k)
    }

    fn extract_from(&mut self, parts: &[Value], ty: Type, k: usize) -> Value {
        if ty.lanes == 1 {
            return parts[0];
        }
        let per = (VECTOR * 8 / ty.elem.bits()) as usize;
        let v = self.f.ins().extractlane(parts[k / per], (k % per) as u8);
        if ty.elem.is_mask() {
            self.f.ins().icmp_imm_s(IntCC::NotEqual, v, 0)
        } else {
            v
        }
    }

    /// All lanes as scalars.
    fn lanes(&mut self, x: Reg) -> Vec<Value> {
        let n = usize::from(self.ty(x).lanes);
        (0..n).map(|k| self.extract(x, k)).collect()
    }

    /// Scalars as lanes; masks are not packed.
    fn pack(&mut self, ty: Type, all: &[Value]) -> Parts {
        if ty.lanes == 1 {
            return all.to_vec();
        }
        let per = (VECTOR * 8 / ty.elem.bits()) as usize;
        let vector = vector_type(ty.elem);
        let is_small = ty.elem.bits() < 32;
        all.chunks(per)
            .map(|lanes| {
                let mut v = if is_small {
                    self.f.ins().splat(vector, lanes[0])
                } else {
                    self.f.ins().scalar_to_vector(vector, lanes[0])
                };
                for (k, x) in lanes.iter().enumerate().skip(1) {
                    v = self.f.ins().insertlane(v, *x, k as u8);
                }
                v
            })
            .collect()
    }

    fn unary(&mut self, f: UnOp, x: Reg, ty: Type) -> Parts {
        let scalar = ty.lanes == 1;
        if !scalar && f == UnOp::PopCount && ty.elem != Elem::I8 {
            let lanes = self.lanes(x);
            let all: Vec<Value> = lanes.into_iter().map(|v| self.f.ins().popcnt(v)).collect();
            return self.pack(ty, &all);
        }
        let parts = self.get(x);
        parts
            .into_iter()
            .map(|v| match f {
                UnOp::Neg if ty.elem.is_float() => self.f.ins().fneg(v),
                UnOp::Neg => self.f.ins().ineg(v),
                UnOp::Abs if ty.elem.is_float() => self.f.ins().fabs(v),
                UnOp::Abs => self.f.ins().iabs(v),
                UnOp::Not if scalar && ty.elem.is_mask() => self.f.ins().bxor_imm_u(v, 1),
                UnOp::Not => self.f.ins().bnot(v),
                UnOp::Sqrt => self.f.ins().sqrt(v),
                UnOp::Floor => self.f.ins().floor(v),
                UnOp::Ceil => self.f.ins().ceil(v),
                UnOp::Nearest => self.f.ins().nearest(v),
                UnOp::Trunc => self.f.ins().trunc(v),
                UnOp::PopCount => self.f.ins().popcnt(v),
            })
            .collect()
    }

    fn binary(&mut self, f: BinOp, x: Reg, y: Reg, ty: Type) -> Parts {
        if ty.lanes > 1 && !has_vector_form(f, ty.elem) {
            let (x, y) = (self.lanes(x), self.lanes(y));
            let all: Vec<Value> = (x.into_iter().zip(y))
                .map(|(x, y)| self.binary_value(f, x, y, ty.elem, false))
                .collect();
            return self.pack(ty, &all);
        }
        let (x, y) = (self.get(x), self.get(y));
        (x.into_iter().zip(y))
            .map(|(x, y)| self.binary_value(f, x, y, ty.elem, ty.lanes > 1))
            .collect()
    }

    fn binary_value(&mut self, f: BinOp, x: Value, y: Value, elem: Elem, vector: bool) -> Value {
        let float = elem.is_float();
        let i = self.f.ins();
        match f {
            BinOp::Add if float => i.fadd(x, y),
            BinOp::Add => i.iadd(x, y),
            BinOp::Sub if float => i.fsub(x, y),
            BinOp::Sub => i.isub(x, y),
            BinOp::Mul if float => i.fmul(x, y),
            BinOp::Mul => i.imul(x, y),
            BinOp::Div => i.fdiv(x, y),
            BinOp::And => i.band(x, y),
            BinOp::Or => i.bor(x, y),
            BinOp::Xor => i.bxor(x, y),
            BinOp::Shl => i.ishl(x, y),
            BinOp::ShrS => i.sshr(x, y),
            BinOp::ShrU => i.ushr(x, y),
            BinOp::DivS | BinOp::RemS => self.divide_signed(f, x, y, scalar_type(elem)),
            BinOp::DivU | BinOp::RemU => self.divide_unsigned(f, x, y, scalar_type(elem)),
            BinOp::MinF | BinOp::MaxF => self.extreme_float(f, x, y, elem, vector),
            BinOp::MinOrSecond | BinOp::MaxOrSecond => {
                self.plain_extreme(f == BinOp::MinOrSecond, x, y, elem, vector)
            }
            BinOp::MinS | BinOp::MaxS | BinOp::MinU | BinOp::MaxU
                if !vector || elem == Elem::I64 =>
            {
                let cmp = match f {
                    BinOp::MinS | BinOp::MaxS => CmpOp::LtS,
                    _ => CmpOp::LtU,
                };
                let less = self.cmp_value(cmp, x, y, elem, vector);
                let (a, b) = if matches!(f, BinOp::MinS | BinOp::MinU) {
                    (x, y)
                } else {
                    (y, x)
                };
                self.choose(less, a, b, elem, vector)
            }
            BinOp::MinS => i.smin(x, y),
            BinOp::MaxS => i.smax(x, y),
            BinOp::MinU => i.umin(x, y),
            BinOp::MaxU => i.umax(x, y),
        }
    }

    /// A comparison of floats. Cranelift 0.135 folds an unaligned load into the packed comparisons of plain SSE, which
    /// fault on it; a change of type keeps the load an instruction of its own. (With AVX nothing faults, and the plain
    /// form is recognised as a minimum or maximum.)
    fn compare_floats(&mut self, cc: FloatCC, x: Value, y: Value, vector: bool) -> Value {
        if !vector || self.has_fma {
            return self.f.ins().fcmp(cc, x, y);
        }
        let mut apart = |v: Value| {
            let ty = self.f.func.dfg.value_type(v);
            let raw = self.f.ins().bitcast(I8X16, bits(), v);
            self.f.ins().bitcast(ty, bits(), raw)
        };
        let (x, y) = (apart(x), apart(y));
        self.f.ins().fcmp(cc, x, y)
    }

    /// NaN if either is NaN: the plain form gives the second operand then, and a NaN in the first overrides it.
    fn extreme_float(&mut self, f: BinOp, x: Value, y: Value, elem: Elem, vector: bool) -> Value {
        let r = self.plain_extreme(f == BinOp::MinF, x, y, elem, vector);
        let nan = self.compare_floats(FloatCC::Unordered, x, x, vector);
        self.choose(nan, x, r, elem, vector)
    }

    /// `x < y ? x : y`, or the other way round: one instruction.
    fn plain_extreme(&mut self, min: bool, x: Value, y: Value, elem: Elem, vector: bool) -> Value {
        let (a, b) = if min { (x, y) } else { (y, x) };
        let first = self.compare_floats(FloatCC::LessThan, a, b, vector);
        self.choose(first, x, y, elem, vector)
    }

    /// `mask ? a : b` of values.
    fn choose(&mut self, mask: Value, a: Value, b: Value, elem: Elem, vector: bool) -> Value {
        if !vector {
            return self.f.ins().select(mask, a, b);
        }
        let ty = vector_type(elem);
        let mask = if elem.is_float() {
            self.f.ins().bitcast(ty, bits(), mask)
        } else {
            mask
        };
        self.f.ins().bitselect(mask, a, b)
    }

    /// Division that never traps: see [`BinOp::DivS`].
    fn divide_signed(&mut self, f: BinOp, x: Value, y: Value, ty: types::Type) -> Value {
        let zero = self.f.ins().iconst(ty, 0);
        let one = self.f.ins().iconst(ty, 1);
        let none = self.f.ins().icmp_imm_s(IntCC::Equal, y, 0);
        let minus = self.f.ins().icmp_imm_s(IntCC::Equal, y, -1);
        let odd = self.f.ins().bor(none, minus);
        let safe = self.f.ins().select(odd, one, y);
        if f == BinOp::RemS {
            let r = self.f.ins().srem(x, safe);
            return self.f.ins().select(odd, zero, r);
        }
        let q = self.f.ins().sdiv(x, safe);
        let negated = self.f.ins().ineg(x);
        let q = self.f.ins().select(minus, negated, q);
        self.f.ins().select(none, zero, q)
    }

    fn divide_unsigned(&mut self, f: BinOp, x: Value, y: Value, ty: types::Type) -> Value {
        let zero = self.f.ins().iconst(ty, 0);
        let one = self.f.ins().iconst(ty, 1);
        let none = self.f.ins().icmp_imm_s(IntCC::Equal, y, 0);
        let safe = self.f.ins().select(none, one, y);
        let r = if f == BinOp::RemU {
            self.f.ins().urem(x, safe)
        } else {
            self.f.ins().udiv(x, safe)
        };
        self.f.ins().select(none, zero, r)
    }

    fn shift(&mut self, f: BinOp, x: Value, n: i64) -> Value {
        let n = self.f.ins().iconst(I32, n);
        match f {
            BinOp::Shl => self.f.ins().ishl(x, n),
            BinOp::ShrS => self.f.ins().sshr(x, n),
            _ => self.f.ins().ushr(x, n),
        }
    }

    fn cmp(&mut self, f: CmpOp, x: Reg, y: Reg) -> Parts {
        let ty = self.ty(x);
        let (x, y) = (self.get(x), self.get(y));
        (x.into_iter().zip(y))
            .map(|(x, y)| self.cmp_value(f, x, y, ty.elem, ty.lanes > 1))
            .collect()
    }

    fn cmp_value(
        &mut self,
        f: CmpOp,
        mut x: Value,
        mut y: Value,
        elem: Elem,
        vector: bool,
    ) -> Value {
        if elem.is_float() {
            let cc = match f {
                CmpOp::Eq => FloatCC::Equal,
                CmpOp::Ne => FloatCC::NotEqual,
                CmpOp::LeF | CmpOp::LeS | CmpOp::LeU => FloatCC::LessThanOrEqual,
                CmpOp::LtF | CmpOp::LtS | CmpOp::LtU => FloatCC::LessThan,
            };
            return self.compare_floats(cc, x, y, vector);
        }
        let mut cc = match f {
            CmpOp::Eq => IntCC::Equal,
            CmpOp::Ne => IntCC::NotEqual,
            CmpOp::LtS | CmpOp::LtF => IntCC::SignedLessThan,
            CmpOp::LeS | CmpOp::LeF => IntCC::SignedLessThanOrEqual,
            CmpOp::LtU => IntCC::UnsignedLessThan,
            CmpOp::LeU => IntCC::UnsignedLessThanOrEqual,
        };
        if vector && elem == Elem::I64 {
            // No unsigned 64-bit vector comparison: the sign bit is flipped on both sides.
            let unsigned = match cc {
                IntCC::UnsignedLessThan => Some(IntCC::SignedLessThan),
                IntCC::UnsignedLessThanOrEqual => Some(IntCC::SignedLessThanOrEqual),
                _ => None,
            };
            if let Some(signed) = unsigned {
                let mut bytes = [0u8; 16];
                (bytes[7], bytes[15]) = (0x80, 0x80);
                let flip = self.vector_constant(I64X2, bytes);
                (x, y) = (self.f.ins().bxor(x, flip), self.f.ins().bxor(y, flip));
                cc = signed;
            }
        }
        self.f.ins().icmp(cc, x, y)
    }

    fn select(&mut self, mask: Reg, x: Reg, y: Reg, ty: Type) -> Parts {
        let (m, x, y) = (self.get(mask), self.get(x), self.get(y));
        (m.into_iter().zip(x).zip(y))
            .map(|((m, x), y)| self.choose(m, x, y, ty.elem, ty.lanes > 1))
            .collect()
    }

    fn fma(&mut self, x: Reg, y: Reg, z: Reg) -> Parts {
        let (x, y, z) = (self.get(x), self.get(y), self.get(z));
        (x.into_iter().zip(y).zip(z))
            .map(|((x, y), z)| {
                if self.has_fma {
                    return self.f.ins().fma(x, y, z);
                }
                let p = self.f.ins().fmul(x, y);
                self.f.ins().fadd(p, z)
            })
            .collect()
    }

    fn convert(&mut self, f: Conv, x: Reg, to: Type) -> Parts {
        let from = self.ty(x);
        if from.lanes == 1 {
            let v = self.one(x);
            return vec![self.convert_scalar(f, v, to.elem)];
        }
        let parts = self.get(x);
        let (a, b) = (from.elem.bits(), to.elem.bits());
        let lanes = u32::from(to.lanes);
        match f {
            Conv::SExt => self.widen(parts, a, b, lanes, true),
            Conv::ZExt => self.widen(parts, a, b, lanes, false),
            Conv::Wrap => self.narrow(parts, a, b, false),
            Conv::Mask if a < b => self.widen(parts, a, b, lanes, true),
            Conv::Mask => self.narrow(parts, a, b, true),
            Conv::Bits => {
                let ty = vector_type(to.elem);
                parts
                    .into_iter()
                    .map(|p| self.f.ins().bitcast(ty, bits(), p))
                    .collect()
            }
            Conv::SToF if a == 32 && b == 32 => parts
                .into_iter()
                .map(|p| self.f.ins().fcvt_from_sint(F32X4, p))
                .collect(),
            Conv::UToF if a == 32 && b == 32 => parts
                .into_iter()
                .map(|p| self.f.ins().fcvt_from_uint(F32X4, p))
                .collect(),
            Conv::SToF if a == 32 => {
                let halves = self.halves(parts, I32X4, lanes as usize / 2);
                let one = |s: &mut Self, p| {
                    let wide = s.f.ins().swiden_low(p);
                    s.f.ins().fcvt_from_sint(F64X2, wide)
                };
                halves.into_iter().map(|p| one(self, p)).collect()
            }
            Conv::FToS if a == 32 && b == 32 => parts
                .into_iter()
                .map(|p| self.f.ins().fcvt_to_sint_sat(I32X4, p))
                .collect(),
            Conv::FToU if a == 32 && b == 32 => parts
                .into_iter()
                .map(|p| self.f.ins().fcvt_to_uint_sat(I32X4, p))
                .collect(),
            Conv::Float if b == 64 => {
                let halves = self.halves(parts, F32X4, lanes as usize / 2);
                halves
                    .into_iter()
                    .map(|p| self.f.ins().fvpromote_low(p))
                    .collect()
            }
            Conv::Float => {
                let low: Parts = parts
                    .into_iter()
                    .map(|p| self.f.ins().fvdemote(p))
                    .collect();
                low.chunks(2)
                    .map(|pair| match pair {
                        [a, b] => self.shuffled(*a, *b, F32X4, LOW_HALVES),
                        _ => pair[0],
                    })
                    .collect()
            }
            Conv::SToF | Conv::UToF | Conv::FToS | Conv::FToU => {
                let lanes = self.lanes(x);
                let all: Vec<Value> = lanes
                    .into_iter()
                    .map(|v| self.convert_scalar(f, v, to.elem))
                    .collect();
                self.pack(to, &all)
            }
        }
    }

    fn convert_scalar(&mut self, f: Conv, v: Value, to: Elem) -> Value {
        let ty = scalar_type(to);
        match f {
            Conv::SExt => self.f.ins().sextend(ty, v),
            Conv::ZExt => self.f.ins().uextend(ty, v),
            Conv::Wrap => self.f.ins().ireduce(ty, v),
            Conv::SToF => self.f.ins().fcvt_from_sint(ty, v),
            Conv::UToF => self.f.ins().fcvt_from_uint(ty, v),
            Conv::FToS => self.f.ins().fcvt_to_sint_sat(ty, v),
            Conv::FToU => self.f.ins().fcvt_to_uint_sat(ty, v),
            Conv::Float if to == Elem::F64 => self.f.ins().fpromote(F64, v),
            Conv::Float => self.f.ins().fdemote(F32, v),
            Conv::Bits => self.f.ins().bitcast(ty, bits(), v),
            Conv::Mask => v,
        }
    }

    /// Low and high halves of each part, moved to the low half; `count` of them.
    fn halves(&mut self, parts: Parts, ty: types::Type, count: usize) -> Parts {
        let mut all = vec![];
        for p in parts {
            all.push(p);
            if all.len() < count {
                all.push(self.shuffled(p, p, ty, HIGH_HALVES));
            }
        }
        all
    }

    /// A byte shuffle of two vectors of any type.
    fn shuffled(&mut self, a: Value, b: Value, ty: types::Type, mask: [u8; 16]) -> Value {
        let mut bytes = |v| {
            if ty == I8X16 {
                v
            } else {
                self.f.ins().bitcast(I8X16, bits(), v)
            }
        };
        let (a, b) = (bytes(a), bytes(b));
        let mask = self
            .f
            .func
            .dfg
            .immediates
            .push(ConstantData::from(&mask[..]));
        let v = self.f.ins().shuffle(a, b, mask);
        if ty == I8X16 {
            v
        } else {
            self.f.ins().bitcast(ty, bits(), v)
        }
    }

    /// Integers (or masks) of twice the bits until there are enough.
    fn widen(&mut self, mut parts: Parts, from: u32, to: u32, lanes: u32, signed: bool) -> Parts {
        let mut width = from;
        while width < to {
            width *= 2;
            let count = (lanes * width / 8 / VECTOR).max(1) as usize;
            let mut wide = Vec::with_capacity(count);
            for p in parts {
                wide.push(if signed {
                    self.f.ins().swiden_low(p)
                } else {
                    self.f.ins().uwiden_low(p)
                });
                if wide.len() < count {
                    wide.push(if signed {
                        self.f.ins().swiden_high(p)
                    } else {
                        self.f.ins().uwiden_high(p)
                    });
                }
            }
            parts = wide;
        }
        parts
    }

    /// Integers of half the bits, low bits kept (of masks all are equal), until they are small enough.
    fn narrow(&mut self, mut parts: Parts, from: u32, to: u32, mask: bool) -> Parts {
        let mut width = from;
        while width > to {
            width /= 2;
            if width < 32 && !mask {
                let ty = int_vector(width * 2);
                let mut bytes = [0u8; 16];
                bytes
                    .chunks_mut(width as usize / 4)
                    .for_each(|lane| lane[..width as usize / 8].fill(0xFF));
                let keep = self.vector_constant(ty, bytes);
                parts = parts
                    .into_iter()
                    .map(|p| self.f.ins().band(p, keep))
                    .collect();
            }
            let pairs: Vec<(Value, Value)> = parts
                .chunks(2)
                .map(|p| (p[0], *p.last().unwrap_or(&p[0])))
                .collect();
            parts = pairs
                .into_iter()
                .map(|(a, b)| match width {
                    32 => {
                        let a = self.f.ins().bitcast(I32X4, bits(), a);
                        let b = self.f.ins().bitcast(I32X4, bits(), b);
                        self.shuffled(a, b, I32X4, EVEN_WORDS)
                    }
                    _ if mask => self.f.ins().snarrow(a, b),
                    _ => self.f.ins().unarrow(a, b),
                })
                .collect();
        }
        parts
    }

    /// A scalar truth value: whether any lane is set.
    fn any(&mut self, mask: Reg) -> Value {
        let bits = self.lane_bits(mask);
        match bits {
            Lanes::One(v) => v,
            Lanes::Bits(v, _) => self.f.ins().icmp_imm_s(IntCC::NotEqual, v, 0),
        }
    }

    /// A mask as bits of an I64, lane 0 lowest (more than 64 lanes are combined modulo 64).
    fn lane_bits(&mut self, mask: Reg) -> Lanes {
        let ty = self.ty(mask);
        if ty.lanes == 1 {
            return Lanes::One(self.one(mask));
        }
        let per = (VECTOR * 8 / ty.elem.bits()).min(u32::from(ty.lanes));
        let parts = self.get(mask);
        let mut all: Option<Value> = None;
        for (i, p) in parts.into_iter().enumerate() {
            let mut v = self.f.ins().vhigh_bits(I64, p);
            if per < VECTOR * 8 / ty.elem.bits() {
                v = self.f.ins().band_imm_u(v, (1i64 << per) - 1);
            }
            let at = i64::from(per) * i as i64;
            if at > 0 {
                v = self.f.ins().ishl_imm_u(v, at);
            }
            all = Some(match all {
                None => v,
                Some(a) => self.f.ins().bor(a, v),
            });
        }
        let v = all.unwrap_or_else(|| unreachable!("bug: a mask without parts"));
        let full = if ty.lanes >= 64 {
            -1
        } else {
            (1i64 << ty.lanes) - 1
        };
        Lanes::Bits(v, full)
    }

    /// All lanes combined.
    fn reduce(&mut self, f: BinOp, x: Reg) -> Value {
        let ty = self.ty(x);
        let mut parts = self.get(x);
        let mut lanes = usize::from(ty.lanes);
        if has_vector_form(f, ty.elem) {
            while parts.len() > 1 {
                let half = parts.len() / 2;
                let upper = parts.split_off(half);
                parts = (parts.into_iter().zip(upper))
                    .map(|(a, b)| self.binary_value(f, a, b, ty.elem, true))
                    .collect();
                lanes /= 2;
            }
        }
        let mut all: Vec<Value> = (0..lanes)
            .map(|k| self.extract_from(&parts, ty, k))
            .collect();
        while all.len() > 1 {
            let half = all.len() / 2;
            let upper = all.split_off(half);
            all = (all.into_iter().zip(upper))
                .map(|(a, b)| self.binary_value(f, a, b, ty.elem, false))
                .collect();
        }
        all[0]
    }

    fn call(&mut self, helper: Helper, args: &[Value]) -> Option<Value> {
        let signature = match self.signatures.get(&helper) {
            Some(s) => *s,
            None => {
                let (params, result) = helper.signature();
                let mut s = Signature::new(self.f.func.signature.call_conv);
                s.params = params
                    .iter()
                    .map(|e| AbiParam::new(scalar_type(*e)))
                    .collect();
                s.returns = result
                    .iter()
                    .map(|e| AbiParam::new(scalar_type(*e)))
                    .collect();
                let s = self.f.import_signature(s);
                self.signatures.insert(helper, s);
                s
            }
        };
        let address = self.f.ins().iconst(I64, helper.address() as i64);
        let call = self.f.ins().call_indirect(signature, address, args);
        self.f.inst_results(call).first().copied()
    }
}

/// A mask for branching.
enum Lanes {
    /// A scalar truth value.
    One(Value),
    /// Bits, and their value when all are set.
    Bits(Value, i64),
}

const LOW_HALVES: [u8; 16] = [0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23];
const HIGH_HALVES: [u8; 16] = [8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31];
const EVEN_WORDS: [u8; 16] = [0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27];

/// The immediate of an integer constant, sign-extended from the type's width.
fn low(value: u64, ty: types::Type) -> i64 {
    let unused = 64 - ty.bits();
    ((value << unused) as i64) >> unused
}

/// Whether the machine (of every architecture) has this on vectors.
fn has_vector_form(f: BinOp, elem: Elem) -> bool {
    match f {
        BinOp::DivS | BinOp::DivU | BinOp::RemS | BinOp::RemU => false,
        BinOp::Shl | BinOp::ShrS | BinOp::ShrU => false,
        BinOp::Mul => elem != Elem::I8,
        _ => true,
    }
}

/// Loads and stores.
impl Emit<'_> {
    fn address(&mut self, place: &Place, size: u32) -> Value {
        let base = self.one(place.base);
        match place.index {
            None => base,
            Some(i) => self.offset(base, i, size),
        }
    }

    fn offset(&mut self, base: Value, index: Reg, size: u32) -> Value {
        let index = self.one(index);
        let scaled = match size {
            1 => index,
            _ => self
                .f
                .ins()
                .ishl_imm_u(index, i64::from(size.trailing_zeros())),
        };
        self.f.ins().iadd(base, scaled)
    }

    fn load(&mut self, place: &Place, guard: Option<Reg>, ty: Type) -> Parts {
        let size = ty.elem.bits() / 8;
        match &place.pattern {
            Pattern::Dense => {
                let address = self.address(place, size);
                match guard {
                    None => self.load_dense(address, ty),
                    Some(g) if ty.lanes == 1 => {
                        let g = self.one(g);
                        vec![self.load_lane(place, address, Some(g), ty.elem)]
                    }
                    Some(g) => self.load_guarded(place, address, g, ty),
                }
            }
            Pattern::Strided(stride) => {
                let address = self.address(place, size);
                self.load_strided(place, address, *stride, guard, ty)
            }
            Pattern::Each(offsets) => {
                let base = self.one(place.base);
                let addresses: Vec<Value> = offsets
                    .iter()
                    .map(|o| self.offset(base, *o, size))
                    .collect();
                self.gather(place, &addresses, guard, ty)
            }
        }
    }

    /// Lanes next to each other.
    fn load_dense(&mut self, address: Value, ty: Type) -> Parts {
        if ty.lanes == 1 {
            return vec![self.f.ins().load(scalar_type(ty.elem), plain(), address, 0)];
        }
        let total = u32::from(ty.lanes) * ty.elem.bits() / 8;
        let vector = vector_type(ty.elem);
        if total >= VECTOR {
            return (0..total / VECTOR)
                .map(|p| {
                    self.f
                        .ins()
                        .load(vector, plain(), address, (p * VECTOR) as i32)
                })
                .collect();
        }
        let v = match total {
            8 => {
                let x = self.f.ins().load(I64, plain(), address, 0);
                self.f.ins().scalar_to_vector(I64X2, x)
            }
            4 => {
                let x = self.f.ins().load(I32, plain(), address, 0);
                self.f.ins().scalar_to_vector(I32X4, x)
            }
            _ => {
                let x = self.f.ins().uload16(I32, plain(), address, 0);
                self.f.ins().scalar_to_vector(I32X4, x)
            }
        };
        let have = if total == 8 { I64X2 } else { I32X4 };
        vec![if have == vector {
            v
        } else {
            self.f.ins().bitcast(vector, bits(), v)
        }]
    }

    /// One element; where the guard is 0 the start of the buffer is read instead and the value is 0.
    fn load_lane(
        &mut self,
        place: &Place,
        address: Value,
        guard: Option<Value>,
        elem: Elem,
    ) -> Value {
        let ty = scalar_type(elem);
        let Some(g) = guard else {
            return self.f.ins().load(ty, plain(), address, 0);
        };
        let _ = place;
        let zeros = self.f.ins().iconst(I64, crate::jit::zeros() as i64);
        let address = self.f.ins().select(g, address, zeros);
        self.f.ins().load(ty, plain(), address, 0)
    }

    /// Dense lanes under a mask: one load when all are wanted, otherwise lane by lane.
    fn load_guarded(&mut self, place: &Place, address: Value, guard: Reg, ty: Type) -> Parts {
        let Lanes::Bits(mask, full) = self.lane_bits(guard) else {
            unreachable!("bug: a scalar guard of a vector load")
        };
        let all = self.f.ins().icmp_imm_s(IntCC::Equal, mask, full);
        let size = i64::from(ty.elem.bits() / 8);
        self.either(
            all,
            ty,
            |s| s.load_dense(address, ty),
            |s| {
                let addresses: Vec<Value> = (0..i64::from(ty.lanes))
                    .map(|k| s.f.ins().iadd_imm_s(address, k * size))
                    .collect();
                s.gather(place, &addresses, Some(guard), ty)
            },
        )
    }

    fn load_strided(
        &mut self,
        place: &Place,
        address: Value,
        stride: Reg,
        guard: Option<Reg>,
        ty: Type,
    ) -> Parts {
        let stride = self.one(stride);
        let mut dense = self.f.ins().icmp_imm_s(IntCC::Equal, stride, 1);
        if let Some(g) = guard
            && let Lanes::Bits(mask, full) = self.lane_bits(g)
        {
            let all = self.f.ins().icmp_imm_s(IntCC::Equal, mask, full);
            dense = self.f.ins().band(dense, all);
        }
        let size = i64::from((ty.elem.bits() / 8).trailing_zeros());
        self.either(
            dense,
            ty,
            |s| s.load_dense(address, ty),
            |s| {
                let addresses = s.strided(address, stride, size, ty.lanes);
                s.gather(place, &addresses, guard, ty)
            },
        )
    }

    fn strided(&mut self, address: Value, stride: Value, size_log2: i64, lanes: u16) -> Vec<Value> {
        let step = self.f.ins().ishl_imm_u(stride, size_log2);
        let mut all = vec![address];
        for k in 1..usize::from(lanes) {
            all.push(self.f.ins().iadd(all[k - 1], step));
        }
        all
    }

    /// The parts of one of two ways to compute them.
    fn either(
        &mut self,
        cond: Value,
        ty: Type,
        yes: impl FnOnce(&mut Self) -> Parts,
        no: impl FnOnce(&mut Self) -> Parts,
    ) -> Parts {
        let [then, other, after] = [0; 3].map(|_| self.f.create_block());
        self.f.ins().brif(cond, then, &[], other, &[]);
        let part = self.part_type(ty);
        let parts: Parts = (0..self.parts(ty))
            .map(|_| self.f.append_block_param(after, part))
            .collect();
        self.f.switch_to_block(then);
        let args: Vec<BlockArg> = yes(self).into_iter().map(BlockArg::Value).collect();
        self.f.ins().jump(after, &args);
        self.f.switch_to_block(other);
        let args: Vec<BlockArg> = no(self).into_iter().map(BlockArg::Value).collect();
        self.f.ins().jump(after, &args);
        self.f.switch_to_block(after);
        parts
    }

    fn gather(
        &mut self,
        place: &Place,
        addresses: &[Value],
        guard: Option<Reg>,
        ty: Type,
    ) -> Parts {
        let guards = guard.map(|g| self.lanes(g));
        let all: Vec<Value> = (0..addresses.len())
            .map(|k| {
                let g = guards.as_ref().map(|g| g[k]);
                self.load_lane(place, addresses[k], g, ty.elem)
            })
            .collect();
        self.pack(ty, &all)
    }

    fn store(&mut self, place: &Place, value: Reg) {
        let ty = self.ty(value);
        let size = ty.elem.bits() / 8;
        match &place.pattern {
            Pattern::Dense => {
                let address = self.address(place, size);
                self.store_dense(address, value);
            }
            Pattern::Strided(stride) => {
                let address = self.address(place, size);
                let stride = self.one(*stride);
                let dense = self.f.ins().icmp_imm_s(IntCC::Equal, stride, 1);
                let [then, other, after] = [0; 3].map(|_| self.f.create_block());
                self.f.ins().brif(dense, then, &[], other, &[]);
                self.f.switch_to_block(then);
                self.store_dense(address, value);
                self.f.ins().jump(after, &[]);
                self.f.switch_to_block(other);
                let log2 = i64::from(size.trailing_zeros());
                let addresses = self.strided(address, stride, log2, ty.lanes);
                self.scatter(&addresses, value);
                self.f.ins().jump(after, &[]);
                self.f.switch_to_block(after);
            }
            Pattern::Each(offsets) => {
                let base = self.one(place.base);
                let addresses: Vec<Value> = offsets
                    .iter()
                    .map(|o| self.offset(base, *o, size))
                    .collect();
                self.scatter(&addresses, value);
            }
        }
    }

    fn scatter(&mut self, addresses: &[Value], value: Reg) {
        for (x, address) in self.lanes(value).into_iter().zip(addresses) {
            self.f.ins().store(plain(), x, *address, 0);
        }
    }

    fn store_dense(&mut self, address: Value, value: Reg) {
        let ty = self.ty(value);
        let parts = self.get(value);
        let total = u32::from(ty.lanes) * ty.elem.bits() / 8;
        if ty.lanes == 1 || total >= VECTOR {
            for (i, p) in parts.into_iter().enumerate() {
                self.f
                    .ins()
                    .store(plain(), p, address, (i as u32 * VECTOR) as i32);
            }
            return;
        }
        let (as_type, _) = match total {
            8 => (I64X2, I64),
            4 => (I32X4, I32),
            _ => (I16X8, I16),
        };
        let v = if vector_type(ty.elem) == as_type {
            parts[0]
        } else {
            self.f.ins().bitcast(as_type, bits(), parts[0])
        };
        let low = self.f.ins().extractlane(v, 0u8);
        self.f.ins().store(plain(), low, address, 0);
    }
}
