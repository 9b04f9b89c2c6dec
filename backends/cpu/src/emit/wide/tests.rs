//! The table of forms and the general-purpose instructions against a disassembler, and programs that must spill.

use super::encode::{Address, Alu, Assembler, Bmi, Cc, Operands, Rm, Width};
use super::forms::{self, Encoding, Form, Layout};
use iced_x86::{Decoder, DecoderOptions, FastFormatter, Instruction, Register};

/// The instruction that these bytes start with.
fn decoded(bytes: &[u8]) -> Instruction {
    Decoder::new(64, bytes, DecoderOptions::NONE).decode()
}

fn text(instruction: &Instruction) -> String {
    let mut out = String::new();
    FastFormatter::new().format(instruction, &mut out);
    out
}

/// Mnemonics of one form with either prefix.
fn names(form: &Form) -> Vec<String> {
    let base = form.name;
    let mut all = vec![base.to_string(), format!("v{base}")];
    let other = match base {
        "roundps" => "vrndscaleps",
        "roundpd" => "vrndscalepd",
        "inserti128" => "vinserti32x4",
        "extracti128" => "vextracti32x4",
        "pandd" | "pandq" => "vpand",
        "pord" | "porq" => "vpor",
        "pxord" | "pxorq" => "vpxor",
        _ => "",
    };
    all.push(other.to_string());
    all
}

/// Registers of a decoded instruction by their number, in the order of its operands; memory is left out.
fn registers(instruction: &Instruction) -> Vec<usize> {
    (0..instruction.op_count())
        .map(|i| instruction.op_register(i))
        .filter(|r| *r != Register::None)
        .map(Register::number)
        .collect()
}

fn encoded(form: &Form, evex: bool, width: Width, o: Operands) -> Vec<u8> {
    let mut asm = Assembler::new(evex);
    asm.vector(form, width, o);
    asm.finish(&[])
}

/// A width that the form has.
fn width(form: &Form) -> Width {
    let name = form.name;
    let is = |names: &[&str]| names.iter().any(|n| name.starts_with(n));
    if is(&[
        "knot", "kmov", "kshift", "movd", "movq", "pinsr", "pextr", "cvttsd", "cvtsi", "movss",
        "movsd",
    ]) {
        return if name.starts_with("movdqu") {
            Width::W256
        } else {
            Width::W128
        };
    }
    if name.ends_with("64x4") {
        Width::W512
    } else {
        Width::W256
    }
}

/// Numbers of registers that differ and use every extension bit a class of registers has.
fn numbers(form: &Form, evex: bool) -> [u8; 3] {
    let name = form.name;
    if name.starts_with('k') {
        return if matches!(form.opcode, 0x92 | 0x93) {
            [3, 0, 5]
        } else {
            [3, 5, 6]
        };
    }
    if form.encoding == Encoding::Evex && (form.opcode == 0xC2 || form.name.starts_with("pcmp")) {
        return [3, 20, 27];
    }
    let general = [
        "movd", "movq", "pinsr", "pextr", "cvttsd", "cvtsi", "movmsk", "pmovmsk",
    ];
    let other = general.iter().any(|g| name.starts_with(g)) && !name.starts_with("movdqu");
    match (evex, other) {
        (true, false) => [17, 28, 10],
        _ => [9, 12, 10],
    }
}

#[test]
fn forms_are_what_they_are_called() {
    let mut wrong: Vec<String> = vec![];
    for form in forms::ALL {
        for evex in [false, true] {
            if form.encoding == Encoding::Evex && !evex {
                continue;
            }
            let vex = form.encoding == Encoding::Vex || !evex;
            let [reg, v, rm] = numbers(form, !vex);
            let o = Operands {
                reg,
                v,
                rm: Rm::Reg(rm),
                mask: 0,
                imm: form.imm.then_some(0x10),
            };
            let memory_only = form.name.starts_with("pmaskmov")
                || form.name == "movntps"
                || form.opcode == 0x91 && form.name == "kmovq";
            if memory_only {
                continue;
            }
            let bytes = encoded(form, evex, width(form), o);
            let instruction = decoded(&bytes);
            let mnemonic = format!("{:?}", instruction.mnemonic()).to_lowercase();
            let mut want: Vec<usize> = match form.layout {
                Layout::Rvm => vec![reg, v, rm],
                Layout::Rm => vec![reg, rm],
                Layout::Mr => vec![rm, reg],
                Layout::Mvr => vec![rm, v, reg],
                Layout::Vm(_) => vec![v, rm],
            }
            .into_iter()
            .map(usize::from)
            .collect();
            // Moves of one element between registers, and blends, have a further operand.
            match form.name {
                "movss" | "movsd" => want.insert(1, 0),
                name if name.contains("blendv") => want.push(1),
                _ => {}
            }
            let good = names(form).contains(&mnemonic)
                && registers(&instruction) == want
                && instruction.len() == bytes.len();
            if !good {
                let shown = text(&instruction);
                wrong.push(format!("{} {want:?}: {shown} ({bytes:02x?})", form.name));
            }
        }
    }
    assert_eq!(wrong, [""; 0], "{}", wrong.join("\n"));
}

#[test]
fn memory_operands_and_masks() {
    let places = [
        Address::Base(0, None, 0),
        Address::Base(4, None, 8),
        Address::Base(5, None, 0),
        Address::Base(13, Some((9, 3)), -4),
        Address::Base(12, Some((1, 0)), 1 << 20),
        Address::Base(15, None, 100),
    ];
    for place in places {
        let Address::Base(base, index, disp) = place else {
            continue;
        };
        let loads = [
            (&forms::MOVUPS, false),
            (&forms::MOVUPS, true),
            (&forms::ADDPD, true),
        ];
        for (form, evex) in loads {
            let o = Operands {
                reg: 13,
                v: if form.layout == Layout::Rvm { 7 } else { 0 },
                rm: Rm::Mem(place),
                mask: if evex { 3 } else { 0 },
                imm: None,
            };
            let i = decoded(&encoded(form, evex, Width::W256, o));
            assert_eq!(i.memory_base().number(), usize::from(base), "{}", text(&i));
            assert_eq!(
                i.memory_displacement64() as i64,
                i64::from(disp),
                "{}",
                text(&i)
            );
            if let Some((index, log2)) = index {
                assert_eq!(i.memory_index().number(), usize::from(index));
                assert_eq!(i.memory_index_scale(), 1 << log2);
            }
            assert_eq!(i.op_mask() != Register::None, evex);
            assert_eq!(i.zeroing_masking(), evex && form.zeroing);
        }
        let o = Operands {
            reg: 31,
            v: 30,
            rm: Rm::Broadcast(place),
            mask: 0,
            imm: None,
        };
        let i = decoded(&encoded(&forms::FMA213PS, true, Width::W512, o));
        assert!(
            i.is_broadcast() && i.op0_register() == Register::ZMM31,
            "{}",
            text(&i)
        );
    }
    let mut asm = Assembler::new(false);
    let o = Operands {
        reg: 3,
        v: 2,
        rm: Rm::Mem(Address::Base(1, None, 4)),
        mask: 0,
        imm: None,
    };
    asm.vector(&forms::PMASKLDD, Width::W256, o);
    asm.vector(&forms::PMASKSTQ, Width::W256, o);
    let mut decoder = Decoder::new(64, &asm.bytes, DecoderOptions::NONE);
    let both: Vec<String> = decoder.iter().map(|i| text(&i)).collect();
    assert_eq!(
        both,
        [
            "vpmaskmovd ymm3,ymm2,[rcx+4h]",
            "vpmaskmovq [rcx+4h],ymm2,ymm3"
        ]
    );
}

#[test]
fn constants_are_found_behind_the_code() {
    let mut asm = Assembler::new(true);
    let o = Operands {
        reg: 1,
        v: 0,
        rm: Rm::Mem(Address::Pool(64)),
        mask: 0,
        imm: Some(9),
    };
    asm.vector(&forms::ROUNDPS, Width::W512, o);
    let bytes = asm.finish(&[7; 128]);
    let i = Decoder::new(64, &bytes, DecoderOptions::NONE).decode();
    assert_eq!(i.memory_displacement64(), 128, "{}", text(&i));
    assert_eq!(bytes.len(), 64 + 128);
}

#[test]
fn general_instructions() {
    let mut asm = Assembler::new(true);
    let mem = Rm::Mem(Address::Base(12, None, 16));
    asm.alu(Alu::Add, 9, Rm::Reg(3));
    asm.alu(Alu::Imul, 1, mem);
    asm.alu_imm(Alu::Sub, Rm::Reg(11), 1000);
    asm.alu_imm(Alu::And, mem, -8);
    asm.alu_imm(Alu::Imul, Rm::Reg(10), 12);
    asm.test(8, 8);
    asm.load(6, mem);
    asm.store(1, Address::Base(13, None, 0), 6);
    asm.store(2, Address::Base(13, None, 0), 10);
    asm.store(4, Address::Base(4, None, 8), 10);
    asm.store(8, Address::Base(4, None, 8), 1);
    asm.extend(1, true, 2, Rm::Reg(6));
    asm.extend(2, false, 12, mem);
    asm.extend(4, true, 2, Rm::Reg(9));
    asm.extend(4, false, 2, Rm::Reg(9));
    asm.constant(9, 5);
    asm.constant(9, -5);
    asm.constant(9, 1 << 40);
    asm.lea(7, Address::Base(3, Some((12, 2)), 4));
    asm.shift(4, 9, 5);
    asm.shift(7, 1, 63);
    asm.group3(3, Rm::Reg(10));
    asm.group3(7, mem);
    asm.cqo();
    asm.set(Cc::Less, 6);
    asm.cmov(Cc::Zero, 9, mem);
    asm.popcnt(1, Rm::Reg(12));
    asm.bmi(Bmi::Shl, 9, Rm::Reg(1), 10);
    asm.bmi(Bmi::ShrS, 9, Rm::Reg(1), 10);
    asm.bmi(Bmi::ShrU, 9, Rm::Reg(1), 10);
    asm.bmi(Bmi::KeepBelow, 1, Rm::Reg(9), 3);
    asm.push(12);
    asm.pop(3);
    asm.lock_or(2, 0);
    asm.sfence();
    asm.leave();
    let mut decoder = Decoder::new(64, &asm.bytes, DecoderOptions::NONE);
    let found: Vec<String> = decoder.iter().map(|i| text(&i)).collect();
    let want = [
        "add r9,rbx",
        "imul rcx,[r12+10h]",
        "sub r11,3E8h",
        "and qword ptr [r12+10h],0FFFFFFFFFFFFFFF8h",
        "imul r10,r10,0Ch",
        "test r8,r8",
        "mov rsi,[r12+10h]",
        "mov [r13],sil",
        "mov [r13],r10w",
        "mov [rsp+8h],r10d",
        "mov [rsp+8h],rcx",
        "movsx rdx,sil",
        "movzx r12,word ptr [r12+10h]",
        "movsxd rdx,r9d",
        "mov edx,r9d",
        "mov r9d,5h",
        "mov r9,0FFFFFFFFFFFFFFFBh",
        "mov r9,10000000000h",
        "lea rdi,[rbx+r12*4+4h]",
        "shl r9,5h",
        "sar rcx,3Fh",
        "neg r10",
        "idiv qword ptr [r12+10h]",
        "cqo",
        "setl sil",
        "movzx rsi,sil",
        "cmove r9,[r12+10h]",
        "popcnt rcx,r12",
        "shlx r9,rcx,r10",
        "sarx r9,rcx,r10",
        "shrx r9,rcx,r10",
        "bzhi rcx,r9,rbx",
        "push r12",
        "pop rbx",
        "lock or [rdx],eax",
        "sfence",
        "vzeroupper",
        "ret",
    ];
    assert_eq!(found, want);
}
