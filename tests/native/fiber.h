// Contexts to switch between, and their stacks; what cuda_shim.h runs a thread in.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <new>

#if !defined(__x86_64__) || !defined(__linux__)
#define DD2_SHIM_UCONTEXT 1
#endif
#ifdef DD2_SHIM_UCONTEXT
#include <ucontext.h>
#endif

namespace dd2_shim {

#ifndef DD2_SHIM_UCONTEXT
using Context = void*;  // the stack pointer; the registers to keep are on the stack

// swapcontext would make a system call for each switch.
extern "C" void dd2_shim_switch(void** save, void* load);
asm(R"(
  .pushsection .text
  .weak dd2_shim_switch
  .type dd2_shim_switch, @function
dd2_shim_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
  .size dd2_shim_switch, . - dd2_shim_switch
  .popsection
)");

inline void switch_context(Context& save, Context& load) { dd2_shim_switch(&save, load); }

inline void make_context(Context& context, char* stack, std::size_t bytes, void (*entry)()) {
  void** top = reinterpret_cast<void**>(stack + bytes);
  *--top = nullptr;  // return address of entry: makes the stack aligned as after a call
  *--top = reinterpret_cast<void*>(entry);
  for (int i = 0; i < 6; ++i) *--top = nullptr;
  context = top;
}
#else
using Context = ucontext_t;

inline void switch_context(Context& save, Context& load) { swapcontext(&save, &load); }

inline void make_context(Context& context, char* stack, std::size_t bytes, void (*entry)()) {
  getcontext(&context);
  context.uc_stack.ss_sp = stack;
  context.uc_stack.ss_size = bytes;
  context.uc_link = nullptr;
  makecontext(&context, entry, 0);
}
#endif

// Stacks kept from one launch to the next, each with a guard page below it.
class Stacks {
 public:
  ~Stacks() { release(); }

  void reserve(int count) {
    if (count <= count_) return;
    release();
    void* memory = mmap(nullptr, count * kStride, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    base_ = static_cast<char*>(memory);
    count_ = count;
    for (int i = 0; i < count; ++i) mprotect(base_ + i * kStride, kGuard, PROT_NONE);
  }

  void start(int i, Context& context, void (*entry)()) {
    // Stacks that all ended at one offset would share a few cache sets.
    const std::size_t bytes = kStride - kGuard - i % 16 * 256;
    make_context(context, base_ + i * kStride + kGuard, bytes, entry);
  }

 private:
  static constexpr std::size_t kStride = 128 * 1024;
  static constexpr std::size_t kGuard = 16 * 1024;  // a page, whatever the machine's size of it

  void release() {
    if (base_) munmap(base_, count_ * kStride);
    base_ = nullptr;
    count_ = 0;
  }

  char* base_ = nullptr;
  int count_ = 0;
};

}  // namespace dd2_shim
