/* Products of a decode step on a CPU in float32: linear layers of few rows, and attention over shared prompts.

What PyTorch's libraries leave on the table: at 4 to 64 rows the weights come from memory, and a library first waits for
them and then computes. Here the next weights are fetched while the present ones are used.

Every output of a product is one chain of multiply-adds over its terms (fused, where the processor can), in ascending
order, in one lane of a vector; attention goes on over keys in such steps. So a row's bits depend neither on the other
rows, nor on how many there are, nor on vector width or threads. Compile it without contraction of other operations.

Vectors of VL floats; a product computes up to ROWS rows of WIDE columns in registers. */

#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#ifdef __linux__
#include <sys/mman.h>
#endif
#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

#ifndef VL
#if defined(__AVX512F__)
#define VL 16
#elif defined(__AVX__)
#define VL 8
#else
#define VL 4
#endif
#endif
#define ROWS (VL == 8 ? 6 : 8) /* as registers allow: AVX2 has 16, AVX-512 and ARM 32 */
#define WIDE (2 * VL)
#define LINE 64                              /* bytes of a cache line */
#define LINES ((WIDE * 4 + LINE - 1) / LINE) /* lines of WIDE floats */
#define DEPTH 512                            /* terms of a linear layer taken at once: their weights stay in L2 */
#define AHEAD 2048                           /* bytes that a first pass fetches ahead */
#define KEYS 64                              /* keys taken at once */
#define HIDDEN -1e30f                        /* the logit of a key that a row may not see */

typedef float vf __attribute__((vector_size(VL * 4), aligned(4), may_alias));
typedef int32_t vi __attribute__((vector_size(VL * 4), aligned(4), may_alias));
_Static_assert(sizeof(vf) == VL * 4, "this compiler does not know vectors");
#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")
INLINE long least(long a, long b) { return a < b ? a : b; }
INLINE long up(long a, long unit) { return (a + unit - 1) / unit * unit; }
INLINE vf spread(float a) { return a - (vf){0}; } /* keeps the sign of -0 */
/* a * b + c with one rounding, where the processor can. Named, because compilers leave it out of some loops. */
INLINE vf fused(vf a, vf b, vf c) {
#if defined(__AVX512F__) && VL == 16
    return (vf)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__) && VL == 8
    return (vf)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__FMA__) && VL == 4
    return (vf)_mm_fmadd_ps((__m128)a, (__m128)b, (__m128)c);
#elif defined(__ARM_NEON) && VL == 4
    return (vf)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#elif defined(__FMA__) || defined(__ARM_NEON)
    for (int i = 0; i < VL; i++) c[i] = __builtin_fmaf(a[i], b[i], c[i]);
    return c;
#else
    return a * b + c;
#endif
}
INLINE vf choose(vi where, vf a, vf b) { return (vf)(((vi)a & where) | ((vi)b & ~where)); }

/* Lines to bring near meanwhile: LINES of them from `at` on every (mask + 1) terms; none if `at` is null. */
typedef struct {
    const char *at;
    long mask;
} Fetch;

/* c[r][j] (+)= sum over k of a(r, k) b[k][j] for `rows` rows and `nv` vectors of columns. a(r, k) lies at
   r * row + k * term. ahead: b comes from memory, so fetch it ahead. */
INLINE void product(const int rows, const int nv, long depth, const float *a, long row, long term, const float *b,
                    long ldb, float *c, long ldc, int add, const int ahead, Fetch fetch) {
    vf sum[ROWS][2];
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int v = 0; v < nv; v++) sum[r][v] = add ? *(const vf *)(c + r * ldc + v * VL) : (vf){0};
    for (long k = 0; k < depth; k++) {
        vf line[2];
        UNROLL for (int v = 0; v < nv; v++) line[v] = *(const vf *)(b + k * ldb + v * VL);
        if (ahead) {
            const char *soon = (const char *)(b + k * ldb) + AHEAD;
            UNROLL for (int l = 0; l < LINES; l++) __builtin_prefetch(soon + l * LINE, 0, 3);
        } else if (fetch.at && (k & fetch.mask) == 0) {
            UNROLL for (int l = 0; l < LINES; l++) __builtin_prefetch(fetch.at + l * LINE, 0, 2);
            fetch.at += LINES * LINE;
        }
        UNROLL for (int r = 0; r < rows; r++) {
            vf one = spread(a[r * row + k * term]);
            UNROLL for (int v = 0; v < nv; v++) sum[r][v] = fused(line[v], one, sum[r][v]);
        }
    }
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int v = 0; v < nv; v++) *(vf *)(c + r * ldc + v * VL) = sum[r][v];
}

/* One compiled product for each number of rows. `stream` and `packed` read packed weights, `stream` from memory;
   `rowwise` has a's terms side by side, `columnwise` a's rows; 1 and 2 are vectors of columns. */
#define ARGUMENTS                                                                                                     \
    long depth, const float *a, long lda, const float *b, long ldb, float *c, long ldc, int add, Fetch fetch
typedef void Product(ARGUMENTS);
#define ONE(name, n, nv, row, term, ldb, ahead)                                                                       \
    static void name##_##n(ARGUMENTS) { product(n, nv, depth, a, row, term, b, ldb, c, ldc, add, ahead, fetch); }
#define DEFINE(n)                                                                                                     \
    ONE(stream, n, 2, lda, 1, WIDE, 1)                                                                                \
    ONE(packed, n, 2, lda, 1, WIDE, 0)                                                                                \
    ONE(rowwise1, n, 1, lda, 1, ldb, 0)                                                                               \
    ONE(rowwise2, n, 2, lda, 1, ldb, 0)                                                                               \
    ONE(columnwise1, n, 1, 1, lda, ldb, 0)                                                                            \
    ONE(columnwise2, n, 2, 1, lda, ldb, 0)
DEFINE(1) DEFINE(2) DEFINE(3) DEFINE(4) DEFINE(5) DEFINE(6)
#if VL == 8
#define TABLE(name) {0, name##_1, name##_2, name##_3, name##_4, name##_5, name##_6}
#else
DEFINE(7) DEFINE(8)
#define TABLE(name) {0, name##_1, name##_2, name##_3, name##_4, name##_5, name##_6, name##_7, name##_8}
#endif
static Product *const STREAM[] = TABLE(stream), *const PACKED[] = TABLE(packed);
static Product *const ROWWISE[2][ROWS + 1] = {TABLE(rowwise1), TABLE(rowwise2)};
static Product *const COLUMNWISE[2][ROWS + 1] = {TABLE(columnwise1), TABLE(columnwise2)};

/* The largest power of two up to `spare`, less one. */
static long mask_of(long spare) {
    long mask = 0;
    while (2 * (mask + 1) <= spare) mask = 2 * mask + 1;
    return mask;
}

/* ---- linear layers ---- */

long aisp_packed_floats(long outputs, long inputs) { return up(outputs, WIDE) * inputs; }

/* Ask for large pages where the system has them: fewer misses of the address cache while weights stream by. */
void aisp_advise(void *start, long bytes) {
#ifdef MADV_HUGEPAGE
    madvise(start, bytes, MADV_HUGEPAGE);
#endif
}

/* weight [outputs, inputs] -> panels of WIDE outputs, [panels, inputs, WIDE], zeros behind the last output. */
void aisp_pack(const float *weight, float *packed, long outputs, long inputs) {
    for (long first = 0; first < outputs; first += WIDE, packed += inputs * WIDE)
        for (long k = 0; k < inputs; k++)
            for (long j = 0; j < WIDE; j++)
                packed[k * WIDE + j] = first + j < outputs ? weight[(first + j) * inputs + k] : 0.0f;
}

/* One panel: c [rows, ldc] = x [rows, inputs] b [inputs, WIDE]. */
static void panel(const float *x, const float *b, float *c, long ldc, long rows, long inputs) {
    long groups = (rows + ROWS - 1) / ROWS, mask = mask_of(groups - 1);
    for (long k = 0; k < inputs; k += DEPTH) {
        long depth = least(DEPTH, inputs - k);
        const char *next = (const char *)(b + depth * WIDE);
        for (long g = 0; g < groups; g++) {
            long start = g * rows / groups, end = (g + 1) * rows / groups;
            Fetch fetch = {next + (g - 1) * (depth / (mask + 1)) * LINES * LINE, mask};
            Product *run = (g ? PACKED : STREAM)[end - start];
            run(depth, x + start * inputs + k, inputs, b, WIDE, c + start * ldc, ldc, k > 0, fetch);
        }
        b += depth * WIDE;
    }
}

/* y [rows, outputs] = x [rows, inputs] weight^T + bias; bias may be null. Returns 1 if there is no memory. */
int aisp_linear(const float *x, const float *packed, const float *bias, float *y, long rows, long outputs,
                long inputs, int threads) {
    long panels = (outputs + WIDE - 1) / WIDE;
    int failed = 0;
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static)
    for (long p = 0; p < panels; p++) {
        long first = p * WIDE, width = least(WIDE, outputs - first);
        float *c = width == WIDE ? y + first : malloc(rows * WIDE * sizeof(float));
        long ldc = width == WIDE ? outputs : WIDE;
        if (!c) {
#pragma omp atomic write
            failed = 1;
            continue;
        }
        panel(x, packed + first * inputs, c, ldc, rows, inputs);
        if (width < WIDE) {
            for (long r = 0; r < rows; r++) memcpy(y + r * outputs + first, c + r * WIDE, width * sizeof(float));
            free(c);
        }
        if (bias)
            for (long r = 0; r < rows; r++)
                for (long j = first; j < first + width; j++) y[r * outputs + j] += bias[j];
    }
    return failed;
}

/* ---- attention ---- */

/* e^x for x <= 0, within 2 units in the last place; 0 below -87. Cephes' polynomial (Moshier, 1992). */
INLINE vf exponential(vf x) {
    const float round = 12582912.0f; /* 1.5 * 2^23: adding it leaves an integer in the low bits */
    vi tiny = x < -87.0f;
    vf shifted = fused(x, spread(1.44269504f), spread(round)), whole = shifted - round;
    vf rest = fused(whole, spread(2.12194440e-4f), fused(whole, spread(-0.693359375f), x));
    vf y = spread(1.9875691500e-4f);
    y = fused(y, rest, spread(1.3981999507e-3f));
    y = fused(y, rest, spread(8.3334519073e-3f));
    y = fused(y, rest, spread(4.1665795894e-2f));
    y = fused(y, rest, spread(1.6666665459e-1f));
    y = fused(y, rest, spread(5.0000001201e-1f));
    y = fused(y, rest * rest, rest) + 1.0f;
    vi power = (((vi)shifted - 0x4B400000) + 127) << 23;
    return choose(tiny, (vf){0}, y * (vf)power);
}

INLINE vf capped(vf x, float cap) { /* cap * tanh(x / cap) */
    vi sign = (vi)x & (vi)spread(-0.0f);
    vf e = exponential((vf)((vi)(x * (2.0f / cap)) | (vi)spread(-0.0f)));
    return (vf)((vi)((1.0f - e) / (1.0f + e) * cap) | sign);
}

/* What attention of a layer needs besides this step's numbers. Suffix buffers: [blocks, slots, heads, block, dim]. */
typedef struct {
    int64_t heads, group, key_dim, value_dim, block, slots, window; /* window 0: none */
    const float *keys, *values, *sinks;                             /* sinks [heads * group] or null */
    float scale, softcap;                                           /* softcap 0: none */
} Layer;

/* Rows of one prompt: keys [heads, count, key_dim] of positions `start` on, values alike. */
typedef struct {
    const float *keys, *values;
    int64_t count, start, length, first_row, num_rows;
} Lane;

#if defined(LAYER_BYTES) && defined(LANE_BYTES) /* what Python takes them for */
_Static_assert(sizeof(Layer) == LAYER_BYTES, "kernels.py describes another Layer");
_Static_assert(sizeof(Lane) == LANE_BYTES, "kernels.py describes another Lane");
#endif

/* The running softmax of the queries of one lane and head; column q of each array belongs to query q. */
typedef struct {
    long num, columns, width;       /* queries; columns of the arrays; value_dim in whole vectors */
    float *query, *score;           /* [key_dim, columns], [KEYS, columns] */
    float *out, *value;             /* [num, width], [KEYS, width] */
    float *top, *mass, *shrink;     /* [columns] */
    int32_t *hidden;                /* [columns]: positions up to here lie before a row's window */
} Softmax;

/* Scores of `count` keys; the values of the same keys are fetched meanwhile, about as many lines as ROWS of them have. */
static void scores(const Layer *l, Softmax *s, const float *keys, const float *values, long count, long q, long num) {
    for (long j = 0; j < count; j += ROWS)
        for (long p = 0; p < num; p += WIDE) {
            Fetch fetch = {p ? 0 : (const char *)(values + j * l->value_dim), LINES * LINE / 32 - 1};
            Product *run = ROWWISE[num - p > VL][least(ROWS, count - j)];
            run(l->key_dim, keys + j * l->key_dim, l->key_dim, s->query + q + p, s->columns,
                s->score + j * s->columns + q + p, s->columns, 0, fetch);
        }
}

/* Scores become weights; the running top and mass go on. Columns behind q + num belong to other rows. */
static void weigh(const Layer *l, Softmax *s, long count, long position, long q, long num) {
    for (long p = q; p < q + num; p += VL) {
        vf top = *(vf *)(s->top + p), before = top, sum = {0};
        vi hidden = *(vi *)(s->hidden + p);
        for (long j = 0; j < count; j++) {
            vf *score = (vf *)(s->score + j * s->columns + p);
            if (l->softcap > 0) *score = capped(*score, l->softcap);
            if (position >= 0) *score = choose((vi){0} + (int32_t)(position + j) <= hidden, spread(HIDDEN), *score);
            top = choose(*score > top, *score, top);
        }
        for (long j = 0; j < count; j++) {
            vf *score = (vf *)(s->score + j * s->columns + p);
            *score = exponential(*score - top);
            sum += *score;
        }
        vf shrink = exponential(before - top), mass = *(vf *)(s->mass + p) * shrink + sum;
        long some = least(VL, q + num - p) * sizeof(float);
        memcpy(s->top + p, &top, some);
        memcpy(s->mass + p, &mass, some);
        memcpy(s->shrink + p, &shrink, some);
    }
}

/* Go on over `count` <= KEYS keys for the queries [q, q + num). position: of the first key, for the window; -1: all
   are seen. */
static void attend(const Layer *l, Softmax *s, const float *keys, const float *values, long count, long position,
                   long q, long num) {
    scores(l, s, keys, values, count, q, num);
    weigh(l, s, count, position, q, num);
    long calls = (num + ROWS - 1) / ROWS * ((s->width + WIDE - 1) / WIDE), lines = count * l->key_dim * 4 / LINE;
    Fetch fetch = {(const char *)(keys + count * l->key_dim), mask_of(calls * count * LINES / (lines + 1))};
    if (s->width > l->value_dim) { /* a last vector would read beyond */
        for (long j = 0; j < count; j++)
            memcpy(s->value + j * s->width, values + j * l->value_dim, l->value_dim * sizeof(float));
        values = s->value;
    }
    for (long p = q; p < q + num; p++)
        for (long d = 0; d < s->width; d += VL) *(vf *)(s->out + p * s->width + d) *= s->shrink[p];
    for (long p = q; p < q + num; p += ROWS)
        for (long d = 0; d < s->width; d += WIDE) {
            Product *run = COLUMNWISE[s->width - d > VL][least(ROWS, q + num - p)];
            run(count, s->score + p, s->columns, values + d, s->width, s->out + p * s->width + d, s->width, 1, fetch);
            fetch.at += (count / (fetch.mask + 1) + 1) * LINES * LINE;
        }
}

static Softmax begin(const Layer *l, long num) {
    Softmax s = {.num = num, .columns = up(num, WIDE) + WIDE, .width = up(l->value_dim, VL)};
    s.query = calloc(s.columns * (l->key_dim + KEYS + 4) + (num + KEYS) * s.width, sizeof(float));
    if (!s.query) return s;
    s.score = s.query + s.columns * l->key_dim;
    s.top = s.score + s.columns * KEYS;
    s.mass = s.top + s.columns;
    s.shrink = s.mass + s.columns;
    s.hidden = (int32_t *)(s.shrink + s.columns);
    s.out = (float *)(s.hidden + s.columns);
    s.value = s.out + num * s.width;
    for (long q = 0; q < s.columns; q++) s.top[q] = HIDDEN;
    return s;
}

/* Divide by the mass, a sink's included, and write each query's row. */
static void finish(const Layer *l, Softmax *s, const int64_t *rows, long head, float *out) {
    long group = l->group;
    for (long q = 0; q < s->num; q += VL) {
        vf top = *(vf *)(s->top + q), mass = *(vf *)(s->mass + q), shrink = spread(1.0f), sink;
        if (l->sinks) { /* one more logit a head, which takes mass and gives nothing */
            for (long i = 0; i < VL; i++) ((float *)&sink)[i] = l->sinks[head * group + (q + i) % group];
            vf most = choose(sink > top, sink, top);
            shrink = exponential(top - most);
            mass = mass * shrink + exponential(sink - most);
        }
        *(vf *)(s->shrink + q) = shrink / mass;
    }
    for (long q = 0; q < s->num; q++) {
        float *to = out + ((rows[q / group] * l->heads + head) * group + q % group) * l->value_dim;
        for (long d = 0; d < l->value_dim; d++) to[d] = s->out[q * s->width + d] * s->shrink[q];
    }
}

/* One key-value head of one lane: the prompt for all rows, then each row's own suffix. */
static int attend_head(const Layer *l, const Lane *lane, const int64_t *rows, const int64_t *step, long head,
                       const float *query, float *out) {
    long group = l->group, total = l->heads * group;
    Softmax s = begin(l, lane->num_rows * group);
    if (!s.query) return 1;
    long seen = lane->start; /* the first position that a row sees */
    for (long i = 0; i < lane->num_rows; i++) {
        long last_hidden = l->window ? lane->length + step[rows[i]] - l->window : -1;
        seen = i && seen < last_hidden + 1 ? seen : last_hidden + 1;
        for (long g = 0; g < group; g++) {
            const float *one = query + (rows[i] * total + head * group + g) * l->key_dim;
            for (long d = 0; d < l->key_dim; d++) s.query[d * s.columns + i * group + g] = one[d] * l->scale;
            s.hidden[i * group + g] = last_hidden;
        }
    }
    const float *keys = lane->keys + head * lane->count * l->key_dim;
    const float *values = lane->values + head * lane->count * l->value_dim;
    for (long j = 0; j < lane->count; j += KEYS) {
        long count = least(KEYS, lane->count - j);
        if (lane->start + j + count <= seen) continue; /* before every row's window */
        long position = l->window ? lane->start + j : -1;
        attend(l, &s, keys + j * l->key_dim, values + j * l->value_dim, count, position, 0, s.num);
    }
    for (long i = 0; i < lane->num_rows; i++) {
        long last = step[rows[i]], first = l->window && last >= l->window ? last - l->window + 1 : 0;
        for (long j = first; j <= last;) { /* up to the end of a block */
            long block = j / l->block, at = j % l->block, count = least(least(KEYS, l->block - at), last + 1 - j);
            long place = ((block * l->slots + rows[i]) * l->heads + head) * l->block + at;
            attend(l, &s, l->keys + place * l->key_dim, l->values + place * l->value_dim, count, -1, i * group, group);
            j += count;
        }
    }
    finish(l, &s, rows, head, out);
    free(s.query);
    return 0;
}

/* out [slots, heads * group, value_dim] for the rows of all lanes; others are left alone.
   query [slots, heads * group, key_dim]. step [slots]: each row's suffix position, whose key and value are in the
   buffers already. Returns 1 if there is no memory. */
int aisp_attend(const Layer *l, const Lane *lanes, long num_lanes, const int64_t *rows, const int64_t *step,
                const float *query, float *out, int threads) {
    int failed = 0;
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(dynamic)
    for (long unit = 0; unit < num_lanes * l->heads; unit++) {
        const Lane *lane = lanes + unit / l->heads;
        if (attend_head(l, lane, rows + lane->first_row, step, unit % l->heads, query, out)) {
#pragma omp atomic write
            failed = 1;
        }
    }
    return failed;
}
