"""The C functions the plugin calls, as ggml's headers declare them.

This table is the whole of the plugin's contract with libggml. ``ggml.load`` checks that the
library has every function; a test checks that the bindings give each the same arguments.
Source: include/ggml.h, ggml-backend.h and ggml-alloc.h of ggml 0.25.3.
"""

PROTOTYPES = """
ggml_tensor* ggml_add(ggml_context* ctx, ggml_tensor* a, ggml_tensor* b)
ggml_tensor* ggml_argmax(ggml_context* ctx, ggml_tensor* a)
ggml_backend_buffer* ggml_backend_alloc_ctx_tensors_from_buft(ggml_context* ctx,
    ggml_backend_buffer_type_t buft)
void ggml_backend_buffer_clear(ggml_backend_buffer_t buffer, uint8_t value)
void ggml_backend_buffer_free(ggml_backend_buffer_t buffer)
void* ggml_backend_buffer_get_base(ggml_backend_buffer_t buffer)
size_t ggml_backend_buffer_get_size(ggml_backend_buffer_t buffer)
bool ggml_backend_buffer_is_host(ggml_backend_buffer_t buffer)
const char* ggml_backend_buffer_name(ggml_backend_buffer_t buffer)
void ggml_backend_buffer_set_usage(ggml_backend_buffer_t buffer, ggml_backend_buffer_usage usage)
ggml_backend_reg_t ggml_backend_dev_backend_reg(ggml_backend_dev_t device)
ggml_backend_buffer_type_t ggml_backend_dev_buffer_type(ggml_backend_dev_t device)
size_t ggml_backend_dev_count(void)
const char* ggml_backend_dev_description(ggml_backend_dev_t device)
ggml_backend_dev_t ggml_backend_dev_get(size_t index)
ggml_backend_t ggml_backend_dev_init(ggml_backend_dev_t device, const char* params)
void ggml_backend_dev_get_props(ggml_backend_dev_t device, ggml_backend_dev_props* props)
void ggml_backend_dev_memory(ggml_backend_dev_t device, size_t* free, size_t* total)
const char* ggml_backend_dev_name(ggml_backend_dev_t device)
bool ggml_backend_dev_supports_op(ggml_backend_dev_t device, const ggml_tensor* op)
ggml_backend_dev_type ggml_backend_dev_type(ggml_backend_dev_t device)
void ggml_backend_free(ggml_backend_t backend)
ggml_status ggml_backend_graph_compute(ggml_backend_t backend, ggml_cgraph* cgraph)
void ggml_backend_load_all_from_path(const char* dir_path)
void* ggml_backend_reg_get_proc_address(ggml_backend_reg_t reg, const char* name)
const char* ggml_backend_reg_name(ggml_backend_reg_t reg)
bool ggml_backend_sched_alloc_graph(ggml_backend_sched_t sched, ggml_cgraph* graph)
void ggml_backend_sched_free(ggml_backend_sched_t sched)
size_t ggml_backend_sched_get_buffer_size(ggml_backend_sched_t sched, ggml_backend_t backend)
int ggml_backend_sched_get_n_splits(ggml_backend_sched_t sched)
ggml_status ggml_backend_sched_graph_compute(ggml_backend_sched_t sched, ggml_cgraph* graph)
ggml_backend_sched_t ggml_backend_sched_new(ggml_backend_t* backends,
    ggml_backend_buffer_type_t* bufts, int n_backends, size_t graph_size, bool parallel,
    bool op_offload)
void ggml_backend_sched_reset(ggml_backend_sched_t sched)
void ggml_backend_sched_set_tensor_backend(ggml_backend_sched_t sched, ggml_tensor* node,
    ggml_backend_t backend)
void ggml_backend_tensor_copy(const ggml_tensor* src, ggml_tensor* dst)
void ggml_backend_tensor_get(const ggml_tensor* tensor, void* data, size_t offset, size_t size)
void ggml_backend_tensor_set(ggml_tensor* tensor, const void* data, size_t offset, size_t size)
void ggml_build_forward_expand(ggml_cgraph* cgraph, ggml_tensor* tensor)
ggml_tensor* ggml_clamp(ggml_context* ctx, ggml_tensor* a, float min, float max)
ggml_tensor* ggml_col2im_1d(ggml_context* ctx, ggml_tensor* a, int s0, int oc, int p0)
ggml_tensor* ggml_concat(ggml_context* ctx, ggml_tensor* a, ggml_tensor* b, int dim)
ggml_tensor* ggml_cont(ggml_context* ctx, ggml_tensor* a)
ggml_tensor* ggml_cos(ggml_context* ctx, ggml_tensor* a)
ggml_tensor* ggml_cpy(ggml_context* ctx, ggml_tensor* a, ggml_tensor* b)
ggml_tensor* ggml_custom_4d(ggml_context* ctx, ggml_type type, int64_t ne0, int64_t ne1,
    int64_t ne2, int64_t ne3, ggml_tensor** args, int n_args, ggml_custom_op_t fun, int n_tasks,
    void* userdata)
ggml_tensor* ggml_custom_inplace(ggml_context* ctx, ggml_tensor* a, ggml_tensor** args, int n_args,
    ggml_custom_op_t fun, int n_tasks, void* userdata)
ggml_tensor* ggml_elu(ggml_context* ctx, ggml_tensor* a)
ggml_tensor* ggml_exp(ggml_context* ctx, ggml_tensor* a)
void ggml_free(ggml_context* ctx)
bool ggml_gallocr_alloc_graph(ggml_gallocr_t galloc, ggml_cgraph* graph)
void ggml_gallocr_free(ggml_gallocr_t galloc)
size_t ggml_gallocr_get_buffer_size(ggml_gallocr_t galloc, int buffer_id)
ggml_gallocr_t ggml_gallocr_new(ggml_backend_buffer_type_t buft)
ggml_tensor* ggml_gelu(ggml_context* ctx, ggml_tensor* a)
ggml_tensor* ggml_gelu_erf(ggml_context* ctx, ggml_tensor* a)
ggml_tensor* ggml_get_rows(ggml_context* ctx, ggml_tensor* a, ggml_tensor* b)
int ggml_graph_n_nodes(ggml_cgraph* cgraph)
ggml_tensor* ggml_graph_node(ggml_cgraph* cgraph, int i)
size_t ggml_graph_overhead_custom(size_t size, bool grads)
ggml_tensor* ggml_group_norm(ggml_context* ctx, ggml_tensor* a, int n_groups, float eps)
ggml_tensor* ggml_im2col(ggml_context* ctx, ggml_tensor* a, ggml_tensor* b, int s0, int s1,
    int p0, int p1, int d0, int d1, bool is_2D, ggml_type dst_type)
ggml_context* ggml_init(ggml_init_params params)
void ggml_log_get(ggml_log_callback* log_callback, void** user_data)
void ggml_log_set(ggml_log_callback log_callback, void* user_data)
ggml_tensor* ggml_mul(ggml_context* ctx, ggml_tensor* a, ggml_tensor* b)
ggml_tensor* ggml_mul_mat(ggml_context* ctx, ggml_tensor* a, ggml_tensor* b)
size_t ggml_nbytes(const ggml_tensor* tensor)
ggml_cgraph* ggml_new_graph_custom(ggml_context* ctx, size_t size, bool grads)
ggml_tensor* ggml_new_tensor_3d(ggml_context* ctx, ggml_type type, int64_t ne0, int64_t ne1,
    int64_t ne2)
ggml_tensor* ggml_new_tensor_4d(ggml_context* ctx, ggml_type type, int64_t ne0, int64_t ne1,
    int64_t ne2, int64_t ne3)
ggml_tensor* ggml_norm(ggml_context* ctx, ggml_tensor* a, float eps)
const char* ggml_op_desc(const ggml_tensor* t)
const char* ggml_op_name(ggml_op op)
ggml_tensor* ggml_permute(ggml_context* ctx, ggml_tensor* a, int axis0, int axis1, int axis2,
    int axis3)
ggml_tensor* ggml_reshape_2d(ggml_context* ctx, ggml_tensor* a, int64_t ne0, int64_t ne1)
ggml_tensor* ggml_reshape_3d(ggml_context* ctx, ggml_tensor* a, int64_t ne0, int64_t ne1,
    int64_t ne2)
ggml_tensor* ggml_reshape_4d(ggml_context* ctx, ggml_tensor* a, int64_t ne0, int64_t ne1,
    int64_t ne2, int64_t ne3)
void ggml_set_input(ggml_tensor* tensor)
ggml_tensor* ggml_set_name(ggml_tensor* tensor, const char* name)
void ggml_set_output(ggml_tensor* tensor)
ggml_tensor* ggml_sigmoid(ggml_context* ctx, ggml_tensor* a)
ggml_tensor* ggml_silu(ggml_context* ctx, ggml_tensor* a)
ggml_tensor* ggml_sin(ggml_context* ctx, ggml_tensor* a)
ggml_tensor* ggml_soft_max_ext(ggml_context* ctx, ggml_tensor* a, ggml_tensor* mask, float scale,
    float max_bias)
ggml_tensor* ggml_sqr(ggml_context* ctx, ggml_tensor* a)
ggml_tensor* ggml_sub(ggml_context* ctx, ggml_tensor* a, ggml_tensor* b)
ggml_tensor* ggml_tanh(ggml_context* ctx, ggml_tensor* a)
size_t ggml_tensor_overhead(void)
ggml_tensor* ggml_transpose(ggml_context* ctx, ggml_tensor* a)
const char* ggml_type_name(ggml_type type)
const char* ggml_version(void)
ggml_tensor* ggml_view_1d(ggml_context* ctx, ggml_tensor* a, int64_t ne0, size_t offset)
ggml_tensor* ggml_view_2d(ggml_context* ctx, ggml_tensor* a, int64_t ne0, int64_t ne1,
    size_t nb1, size_t offset)
ggml_tensor* ggml_view_3d(ggml_context* ctx, ggml_tensor* a, int64_t ne0, int64_t ne1,
    int64_t ne2, size_t nb1, size_t nb2, size_t offset)
ggml_tensor* ggml_view_4d(ggml_context* ctx, ggml_tensor* a, int64_t ne0, int64_t ne1,
    int64_t ne2, int64_t ne3, size_t nb1, size_t nb2, size_t nb3, size_t offset)
"""


def declarations() -> dict[str, tuple[str, list[str]]]:
    """Parse the table.

    Returns
    -------
    dict
        Function name -> (return type, list of argument types); names of arguments dropped.
    """
    table = {}
    for line in PROTOTYPES.replace(",\n   ", ",").strip().splitlines():
        head, arguments = line.rstrip(")").split("(", 1)
        returns, name = head.rsplit(" ", 1)
        kinds = [] if arguments == "void" else [a.rsplit(" ", 1)[0] for a in arguments.split(", ")]
        table[name] = (returns, kinds)
    return table
