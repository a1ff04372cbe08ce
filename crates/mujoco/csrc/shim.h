// What Rust sees of MuJoCo. Models, data and renderers are opaque; the two `view` structs hold the sizes and the
// arrays that Rust turns into slices, so that no struct of MuJoCo's own (their layout changes between versions) is
// described twice. Field order here and in src/ffi.rs must agree; `em_layout` lets a test compare the sizes.
//
// Every function that may fail returns 0, or nonzero with the reason in em_last_error().
#ifndef EFFERENCE_MUJOCO_SHIM_H
#define EFFERENCE_MUJOCO_SHIM_H

#include <mujoco/mujoco.h>
#include <stddef.h>
#include <stdint.h>

typedef struct {
  const char* name;
  const void* bytes;
  int len;
} em_asset;

typedef struct {
  // sizes
  int nq, nv, nu, na, nbody, njnt, ngeom, nsite, ncam, nlight, nmat, nmocap, nsensor, nsensordata, nkey, nstate;
  // constants that index other arrays
  const int *body_parentid, *body_mocapid, *geom_bodyid, *geom_type, *geom_group, *site_bodyid;
  const int *jnt_type, *jnt_qposadr, *jnt_dofadr, *jnt_bodyid, *dof_jntid, *sensor_adr, *sensor_dim;
  const unsigned char *jnt_limited, *actuator_ctrllimited;
  // floats
  double *timestep, *gravity, *extent;
  double *qpos0, *jnt_range, *actuator_ctrlrange, *body_mass, *body_pos, *body_quat, *body_subtreemass;
  double *geom_size, *geom_aabb, *geom_rbound, *geom_friction, *geom_pos, *geom_quat, *site_pos, *site_quat;
  double *cam_pos, *cam_quat, *cam_fovy, *light_pos, *light_dir;
  float *geom_rgba, *site_rgba, *mat_rgba, *light_ambient, *light_diffuse, *light_specular;
  float *head_ambient, *head_diffuse, *head_specular;
  unsigned char *light_active, *light_castshadow, *geom_sameframe, *site_sameframe;
} em_model_view;

typedef struct {
  double *time, *qpos, *qvel, *act, *ctrl, *qacc, *qacc_warmstart;
  double *qfrc_applied, *xfrc_applied, *qfrc_bias, *qfrc_passive, *qfrc_actuator, *qfrc_constraint, *actuator_force;
  double *mocap_pos, *mocap_quat;
  double *xpos, *xquat, *xmat, *xipos, *geom_xpos, *geom_xmat, *site_xpos, *site_xmat, *cam_xpos, *cam_xmat;
  double *sensordata;
} em_data_view;

typedef struct {
  double dist, pos[3], normal[3], force[6];
  int geom1, geom2;  // -1 for a flex
} em_contact;

typedef struct {
  int fixed_id;  // -1: the free camera below
  double lookat[3], distance, azimuth, elevation;
} em_camera;

typedef struct {
  int shadows, reflections, samples;
} em_quality;

typedef struct em_renderer em_renderer;

// Kinds of named things; MuJoCo's own numbers differ between versions.
enum { EM_BODY, EM_JOINT, EM_GEOM, EM_SITE, EM_CAMERA, EM_LIGHT, EM_MATERIAL, EM_ACTUATOR, EM_SENSOR, EM_KEYFRAME };
enum { EM_BAD_QPOS, EM_BAD_QVEL, EM_BAD_QACC, EM_BAD_CTRL };
enum { EM_RGB, EM_DEPTH, EM_SEGMENTATION };
enum { EM_OK, EM_ERROR, EM_UNSTABLE };

// Once per process, before anything else: error and warning handlers.
void em_init(void);
const char* em_last_error(void);
int em_version_header(void);
void em_layout(size_t out[6]);

// Model. `warning` receives the compiler's warnings (empty: none).
mjModel* em_model_load_file(const char* path, char* warning, int warning_len);
mjModel* em_model_load_string(const char* xml, int len, const em_asset* assets, int nasset, char* warning, int warning_len);
void em_model_free(mjModel* m);
// A model with its own copy of everything that has a setter, and the other arrays (meshes, textures, ...) of `m`, which
// must outlive it.
mjModel* em_model_layer(const mjModel* m);
void em_model_layer_free(mjModel* m);
void em_model_compute_sensors(mjModel* m, int on);
void em_model_view_of(mjModel* m, em_model_view* out);
int em_name_id(const mjModel* m, int kind, const char* name);
const char* em_id_name(const mjModel* m, int kind, int id);

// Data.
mjData* em_data_new(const mjModel* m);
mjData* em_data_copy(const mjModel* m, const mjData* d);
void em_data_free(mjData* d);
void em_data_view_of(mjData* d, em_data_view* out);
int em_reset(const mjModel* m, mjData* d, int keyframe);
// EM_UNSTABLE: `quantity` is EM_BAD_*, `index` the bad element, `time` that of the last good state; the state is reset.
int em_step(const mjModel* m, mjData* d, int n, int* quantity, int* index, double* time);
// The two halves of a step, before and after the controls are chosen; results as em_step.
int em_step1(const mjModel* m, mjData* d, int* quantity, int* index, double* time);
int em_step2(const mjModel* m, mjData* d, int* quantity, int* index, double* time);
int em_forward(const mjModel* m, mjData* d);
// The part of em_forward that depends on controls; positions and velocities must not have changed since the last one.
int em_forward_acceleration(const mjModel* m, mjData* d);
int em_forward_position(const mjModel* m, mjData* d);
int em_kinematics(const mjModel* m, mjData* d);
int em_state_get(const mjModel* m, const mjData* d, double* out);
int em_state_set(const mjModel* m, mjData* d, const double* in);
// Distance in lengths of `along` to the first visible geom of the six groups' flags, -1 and geom -1 where nothing is.
int em_ray(const mjModel* m, const mjData* d, const double* from, const double* along, const unsigned char* groups,
           int body_excluded, double* distance, int* geom);
int em_jac_site(const mjModel* m, mjData* d, int site, double* jacp, double* jacr);
int em_jac_point(const mjModel* m, mjData* d, int body, const double* point, double* jacp, double* jacr);
int em_mass_matrix(const mjModel* m, mjData* d, double* out);
// Rows and columns `dofs` (n of them) of the mass matrix.
int em_mass_block(const mjModel* m, mjData* d, const int* dofs, int n, double* out);
int em_velocity(const mjModel* m, mjData* d, int kind, int id, double* out);
int em_contact_count(const mjData* d);
void em_contact_at(const mjModel* m, const mjData* d, int index, em_contact* out);
void em_contact_geoms(const mjData* d, int index, int out[2]);
// How often a buffer was too small: contacts, constraints, visual objects.
int em_overflow_count(const mjData* d);

// Renderer: to be used only on the thread that made it.
em_renderer* em_renderer_new(const mjModel* m, int width, int height, em_quality quality);
void em_renderer_free(em_renderer* r);
int em_renderer_draw(em_renderer* r, const mjModel* m, mjData* d, const em_camera* camera, int what, unsigned char* rgb,
                     float* depth, int* ids);
int em_renderer_samples(const em_renderer* r);
const char* em_renderer_driver(em_renderer* r);
// Things in the scene of the last picture.
int em_renderer_drawn(const em_renderer* r);
// Whether to draw what the picture cannot show, too.
void em_renderer_draw_unseen(em_renderer* r, int unseen);
void em_renderer_show_group(em_renderer* r, int sites, int group, int visible);

// A headless OpenGL context (egl.c). Errors go into `why`.
typedef struct em_gl em_gl;
em_gl* em_gl_new(char* why, int why_len);
int em_gl_make_current(em_gl* gl, char* why, int why_len);
void em_gl_free(em_gl* gl);
const char* em_gl_driver(void);

#endif
