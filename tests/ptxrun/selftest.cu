// Small kernels with known answers, and kernels with a planted fault each; for NVRTC.
typedef unsigned short half_bits;

__device__ unsigned shared_address(const void* p) {
  return static_cast<unsigned>(__cvta_generic_to_shared(p));
}
__device__ void copy_16(void* to, const void* from) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(to)), "l"(from)
               : "memory");
}
__device__ void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Called, not inlined: structs by value, an array in local memory, a barrier, an early return.
struct Line {
  double slope;
  float offset;
  short times;
};
__device__ __noinline__ float on_line(Line line, float x) {
  for (int n = 0; n < line.times; ++n) x = static_cast<float>(line.slope) * x + line.offset;
  return x;
}
__device__ __noinline__ int digit_sum(const int* digits, int first, int base) {
  if (first < 0) return -1;
  int counts[8] = {};
  for (int n = 0; n < 16; ++n) counts[digits[n] % base] += first;
  int sum = 0;
  for (int n = 0; n < base; ++n) sum += counts[n] * n;
  return sum;
}
__device__ __noinline__ float neighbour(float mine, int by, bool wait) {
  __shared__ float shared[64];
  if (wait) __syncthreads();
  shared[threadIdx.x] = mine;
  __syncthreads();
  const float found = shared[(threadIdx.x + by) % 64];
  return on_line({1.0, 0.5f, 2}, found);
}

extern "C" {

__global__ void calls(float* out, int* sums, const float* x, const int* digits) {
  const int i = threadIdx.x;
  float mine = on_line({2.0, 1.0f, static_cast<short>(i % 3)}, x[i]);
  mine = neighbour(mine, 1, true);
  out[i] = neighbour(mine, 5, true);
  if (i % 2) sums[i] = digit_sum(digits, i - 10, 5 + i % 4);
}
__global__ void bad_call(float* out) {
  out[threadIdx.x] = neighbour(neighbour(1.0f, 1, true), 5, false);
}
__global__ void saxpy(float* y, const float* x, float a, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) y[i] = a * x[i] + y[i];
}

__global__ void block_sum(float* out, const float* x, int n) {
  __shared__ float part[32];
  float sum = 0;
  for (int i = threadIdx.x; i < n; i += blockDim.x) sum += x[i];
  for (int o = 16; o; o /= 2) sum += __shfl_down_sync(~0u, sum, o);
  if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = sum;
  __syncthreads();
  if (threadIdx.x == 0) {
    for (unsigned w = 1; w < blockDim.x / 32; ++w) sum += part[w];
    *out = sum;
  }
}

// ldmatrix and mma: C = A B^T of 16x16 and 8x16 halves; A's transpose by .trans; A by stmatrix.
__global__ void product(float* c, unsigned* transposed, half_bits* stored, const half_bits* a,
                        const half_bits* b) {
  __shared__ __align__(16) half_bits A[16][16], B[8][16], S[16][16];
  const int lane = threadIdx.x;
  for (int i = lane; i < 256; i += 32) A[i / 16][i % 16] = a[i];
  for (int i = lane; i < 128; i += 32) B[i / 16][i % 16] = b[i];
  __syncthreads();
  unsigned ra[4], rb[2], rt[4];
  const unsigned at = shared_address(&A[lane % 16][lane / 16 * 8]);
  const unsigned bt = shared_address(&B[lane % 8][lane / 8 % 2 * 8]);
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(ra[0]), "=r"(ra[1]), "=r"(ra[2]), "=r"(ra[3]) : "r"(at));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(rt[0]), "=r"(rt[1]), "=r"(rt[2]), "=r"(rt[3]) : "r"(at));
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0,%1}, [%2];"
               : "=r"(rb[0]), "=r"(rb[1]) : "r"(bt));
  float d[4] = {0, 0, 0, 0};
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
               "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
               : "r"(ra[0]), "r"(ra[1]), "r"(ra[2]), "r"(ra[3]), "r"(rb[0]), "r"(rb[1]));
  const int row = lane / 4, column = lane % 4 * 2;
  c[row * 8 + column] = d[0], c[row * 8 + column + 1] = d[1];
  c[(row + 8) * 8 + column] = d[2], c[(row + 8) * 8 + column + 1] = d[3];
  for (int n = 0; n < 4; ++n) transposed[lane * 4 + n] = rt[n];
#if __CUDA_ARCH__ >= 900
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1,%2,%3,%4};"
               ::"r"(shared_address(&S[lane % 16][lane / 16 * 8])), "r"(ra[0]), "r"(ra[1]),
               "r"(ra[2]), "r"(ra[3]) : "memory");
#else
  for (int i = lane; i < 256; i += 32) S[i / 16][i % 16] = A[i / 16][i % 16];
#endif
  __syncthreads();
  for (int i = lane; i < 256; i += 32) stored[i] = S[i / 16][i % 16];
}

// One product of a lane: what the adder of tensor cores cuts off.
__global__ void sums(float* out, const half_bits* a, float before) {
  const unsigned one = 0x3c003c00u;
  float d[4] = {before, before, before, before};
  const unsigned* pairs = reinterpret_cast<const unsigned*>(a);
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
               "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%8}, {%0,%1,%2,%3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
               : "r"(pairs[threadIdx.x % 4]), "r"(0), "r"(pairs[4 + threadIdx.x % 4]), "r"(0),
                 "r"(one));
  out[threadIdx.x] = d[0];
}

__global__ void copies(int* out, const int* in, int n) {
  __shared__ __align__(16) int part[2][128];
  int sum = 0;
  for (int step = 0; step < n + 1; ++step) {
    if (step < n) copy_16(&part[step % 2][threadIdx.x * 4], in + step * 128 + threadIdx.x * 4);
    commit_copies();
    if (step > 0) {
      asm volatile("cp.async.wait_group 1;" ::: "memory");
      __syncthreads();
      for (int k = 0; k < 4; ++k) sum += part[(step - 1) % 2][(threadIdx.x * 4 + k + 17) % 128];
      __syncthreads();
    }
  }
  out[threadIdx.x] = sum;
}

__global__ void lanes(unsigned* out, const unsigned* in) {
  const unsigned lane = threadIdx.x, x = in[lane];
  unsigned* o = out + lane * 17;
  o[0] = __shfl_up_sync(~0u, x, 3);
  o[1] = __shfl_xor_sync(~0u, x, 5, 8);
  o[2] = __shfl_sync(~0u, x, 9, 8);
  o[3] = __ballot_sync(~0u, x & 1);
  o[4] = __reduce_add_sync(~0u, x);
  o[5] = __match_any_sync(~0u, x & 3);
  o[6] = __brev(x), o[7] = __clz(x), o[8] = __popc(x), o[9] = __byte_perm(x, ~x, 0x5147);
  o[10] = __umulhi(x, 2654435761u), o[11] = x / (lane + 1);
  o[12] = __funnelshift_l(x, ~x, lane);
  if (lane < 7) {
    o[13] = __shfl_sync(0x7f, x, 6);
  } else {
    o[13] = __shfl_sync(~0x7fu, x, 31);
  }
  o[14] = __all_sync(~0u, x != 0), o[15] = __syncthreads_count(x & 1);
  o[16] = __ffs(x);
}

__global__ void functions(float* out, const float* in, int n) {
  const int i = threadIdx.x;
  if (i >= n) return;
  const float x = in[i];
  float* o = out + i * 12;
  half_bits half, brain;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(half) : "f"(x));
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(brain) : "f"(x));
  o[0] = exp2f(x), o[1] = __expf(x), o[2] = logf(fabsf(x)), o[3] = sqrtf(fabsf(x));
  o[4] = 1.0f / x, o[5] = x / 3.0f;
  asm("cvt.f32.f16 %0, %1;" : "=f"(o[6]) : "h"(half));
  o[7] = __uint_as_float(static_cast<unsigned>(brain) << 16);
  o[8] = rintf(x), o[9] = static_cast<float>(__float2int_rd(x)), o[10] = __fadd_rz(x, 1e-9f);
  o[11] = erff(x);
}

// Planted faults.
__global__ void bad_race(float* out) {
  __shared__ float s[64];
  s[threadIdx.x] = threadIdx.x;
  out[threadIdx.x] = s[(threadIdx.x + 32) % 64];
}
__global__ void bad_race_in_warp(float* out) {
  __shared__ volatile float s[32];
  s[threadIdx.x] = threadIdx.x;
  out[threadIdx.x] = s[threadIdx.x ^ 1];
}
__global__ void good_warp(float* out) {
  __shared__ volatile float s[64];
  s[threadIdx.x] = threadIdx.x;
  __syncwarp();
  const float x = s[threadIdx.x ^ 1];
  __syncwarp();
  s[threadIdx.x] = x;
  out[threadIdx.x] = x;
}
__global__ void bad_reuse(float* out) {  // write after read, without a barrier between
  __shared__ float s[64];
  float sum = 0;
  for (int n = 0; n < 3; ++n) {
    s[threadIdx.x] = n;
    __syncthreads();
    sum += s[63 - threadIdx.x];
  }
  out[threadIdx.x] = sum;
}
__global__ void bad_bounds(float* out, const float* in, int n) {
  out[threadIdx.x] = in[threadIdx.x + n - 63];
}
__global__ void bad_shared_bounds(float* out, int n) {
  extern __shared__ float s[];
  s[threadIdx.x + n] = 1;
  out[threadIdx.x] = s[threadIdx.x + n];
}
__global__ void bad_uninitialised(float* out) {
  __shared__ float s[64];
  if (threadIdx.x != 5) s[threadIdx.x] = 1;
  __syncthreads();
  out[threadIdx.x] = s[threadIdx.x];
}
__global__ void bad_alignment(float4* out, const float* in, int n) {
  out[threadIdx.x] = *reinterpret_cast<const float4*>(in + n + 4 * threadIdx.x);
}
__global__ void bad_mask(unsigned* out) {
  if (threadIdx.x < 16) {
    out[threadIdx.x] = __shfl_sync(~0u, threadIdx.x, 3);
  } else if (threadIdx.x != 20) {
    out[threadIdx.x] = __ballot_sync(~0u, 1);
  }
}
__global__ void bad_barrier(float* out) {
  if (threadIdx.x < 32) {
    __syncthreads();
    out[threadIdx.x] = 1;
    __syncthreads();
  } else {
    asm volatile("bar.sync 1, 96;");
    out[threadIdx.x] = 2;
  }
}
__global__ void bad_no_wait(int* out, const int* in) {
  __shared__ __align__(16) int part[128];
  copy_16(&part[threadIdx.x * 4], in + threadIdx.x * 4);
  commit_copies();
  __syncthreads();
  out[threadIdx.x] = part[(threadIdx.x * 4 + 17) % 128];
}
__global__ void bad_same_value(float* out) {  // equal bytes by two warps
  __shared__ volatile float s[1];
  s[0] = 1;
  __syncthreads();
  out[threadIdx.x] = s[0];
}
__global__ void bad_loop(int* out) {
  while (*reinterpret_cast<volatile int*>(out) == 0) {}
}
__global__ void bad_blocks(int* out) {
  if (threadIdx.x == 0) *out = blockIdx.x;
}

}
