/*
 * Hyper-V enlightenments for TCG guests: hypercalls
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "hw/hyperv/hyperv.h"
#include "hyperv_internal.h"

#define NOTIFY_LONG_SPIN_WAIT 0x0008

#define INPUT_CODE_MASK 0xffff

/*
 * Without the BQL, which every signalled event would wait for: it is one bit,
 * and a guest that calls while it changes the MSR may get either answer.
 */
static bool hypercalls_enabled(void)
{
    return hyperv_tcg_partition()->msr_hv_hypercall & HV_HYPERCALL_ENABLE;
}

static uint16_t dispatch(uint64_t input, uint64_t param)
{
    bool fast = input & HV_HYPERCALL_FAST;

    switch (input & INPUT_CODE_MASK) {
    case NOTIFY_LONG_SPIN_WAIT:
    case HV_POST_MESSAGE:
    case HV_SIGNAL_EVENT:
        break;
    default:
        return HV_STATUS_INVALID_HYPERCALL_CODE;
    }

    /* all are simple calls: no variable header, no repeats */
    if (input & ~(uint64_t)(INPUT_CODE_MASK | HV_HYPERCALL_FAST)) {
        return HV_STATUS_INVALID_HYPERCALL_INPUT;
    }

    switch (input & INPUT_CODE_MASK) {
    case HV_POST_MESSAGE:
        return hyperv_hcall_post_message(param, fast);
    case HV_SIGNAL_EVENT:
        return hyperv_hcall_signal_event(param, fast);
    default:
        return HV_STATUS_SUCCESS;
    }
}

static uint64_t join(target_ulong high, target_ulong low)
{
    return (uint64_t)(uint32_t)high << 32 | (uint32_t)low;
}

bool hyperv_tcg_hypercall(CPUX86State *env)
{
    X86CPU *cpu = env_archcpu(env);
    target_ulong *regs = env->regs;

    if (!hyperv_tcg_enabled(cpu) || (env->hflags & HF_CPL_MASK) ||
        !(env->cr[0] & CR0_PE_MASK) || !hypercalls_enabled()) {
        return false;
    }

    if (env->hflags & HF_CS64_MASK) {
        regs[R_EAX] = dispatch(regs[R_ECX], regs[R_EDX]);
    } else {
        regs[R_EAX] = dispatch(join(regs[R_EDX], regs[R_EAX]),
                               join(regs[R_EBX], regs[R_ECX]));
        regs[R_EDX] = 0;
    }
    return true;
}
