// What tells ThreadSanitizer of a block's threads and of their barriers, where the shim is built
// with it; else nothing. Only __syncthreads and __syncwarp order memory: shuffles and votes do not.
#pragma once

namespace dd2_shim {

// How many barriers a thread has passed.
struct BarrierCounts {
  unsigned block;
  unsigned warp;
};

#ifdef __SANITIZE_THREAD__
extern "C" {
void* __tsan_get_current_fiber();
void* __tsan_create_fiber(unsigned flags);
void __tsan_switch_to_fiber(void* fiber, unsigned flags);
void __tsan_acquire(void* address);
void __tsan_release(void* address);
void AnnotateIgnoreReadsBegin(const char* file, int line);
void AnnotateIgnoreReadsEnd(const char* file, int line);
void AnnotateIgnoreWritesBegin(const char* file, int line);
void AnnotateIgnoreWritesEnd(const char* file, int line);
}

namespace races {

constexpr unsigned kNoOrder = 1;  // a switch alone orders nothing

inline void* scheduler = nullptr;
inline void* fibers[1024] = {};  // of a block's threads, kept: there may be a few thousand in all
inline char start, end;

// Barriers take turns, so that what follows one is not yet ordered by it.
struct Tokens {
  char turn[2];
};

// The shim's own data.
struct Ignored {
  Ignored() {
    AnnotateIgnoreReadsBegin(__FILE__, __LINE__);
    AnnotateIgnoreWritesBegin(__FILE__, __LINE__);
  }
  ~Ignored() {
    AnnotateIgnoreWritesEnd(__FILE__, __LINE__);
    AnnotateIgnoreReadsEnd(__FILE__, __LINE__);
  }
  Ignored(const Ignored&) = delete;
};

// Orders what all threads did before a barrier before what they do after it.
class Ordering {
 public:
  Ordering(unsigned& count, Tokens& tokens) : token_(&tokens.turn[count++ % 2]) {
    __tsan_release(token_);
  }
  ~Ordering() { __tsan_acquire(token_); }

 private:
  char* token_;
};

inline void to_fiber(int thread) {
  if (fibers[thread] == nullptr) fibers[thread] = __tsan_create_fiber(0);
  __tsan_switch_to_fiber(fibers[thread], kNoOrder);
}
inline void to_scheduler() { __tsan_switch_to_fiber(scheduler, kNoOrder); }
inline void begin_thread() { __tsan_acquire(&start); }
inline void end_thread() { __tsan_release(&end); }

// A block of threads, on the scheduler.
struct Block {
  Block() {
    scheduler = __tsan_get_current_fiber();
    __tsan_release(&start);
  }
  ~Block() { __tsan_acquire(&end); }
};

}  // namespace races
#else
namespace races {

struct Tokens {};
struct Ignored {
  Ignored() {}
};
struct Ordering {
  template <typename Fiber>
  Ordering(const Fiber&, Tokens&) {}
};
struct Block {
  Block() {}
};
inline void to_fiber(int) {}
inline void to_scheduler() {}
inline void begin_thread() {}
inline void end_thread() {}

}  // namespace races
#endif

}  // namespace dd2_shim
