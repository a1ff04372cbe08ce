#include "shim.h"

#include <math.h>
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

// ---- errors ---------------------------------------------------------------------------------------------------------
// MuJoCo reports fatal errors by calling a handler that must not return; its default handler ends the process. Ours
// jumps back to the shim function that called into MuJoCo, which then returns an error like any other function.

static _Thread_local jmp_buf* escape_to;
static _Thread_local char last_error[1024];

static void fail(const char* message) { snprintf(last_error, sizeof last_error, "%s", message); }

static void on_error(const char* message) {
  fail(message);
  if (escape_to) longjmp(*escape_to, 1);
  // A thread of MuJoCo's own, or a call that has no guard: there is nowhere to return to, but nobody shall wonder why.
  fprintf(stderr, "fatal error in MuJoCo: %s\n", message);
  abort();
}

// The default handler writes a log file into the working folder. What matters is counted in mjData.warning.
static void on_warning(const char* message) { (void)message; }

// Runs `body`; a fatal error inside makes the enclosing function return `otherwise`.
#define GUARD(otherwise, body)     \
  do {                             \
    jmp_buf here, *outer = escape_to; \
    escape_to = &here;             \
    if (_setjmp(here)) {           \
      escape_to = outer;           \
      return otherwise;            \
    }                              \
    body;                          \
    escape_to = outer;             \
  } while (0)

// The same for calls that use mjData's stack: an escape must give back what the interrupted function had taken.
#define GUARD_DATA(d, body)                             \
  do {                                                  \
    jmp_buf here, *outer = escape_to;                   \
    const size_t pstack = (d)->pstack, pbase = (d)->pbase; \
    escape_to = &here;                                  \
    if (_setjmp(here)) {                                \
      escape_to = outer;                                \
      (d)->pstack = pstack;                             \
      (d)->pbase = pbase;                               \
      return EM_ERROR;                                  \
    }                                                   \
    body;                                               \
    escape_to = outer;                                  \
  } while (0)

void em_init(void) {
  mju_user_error = on_error;
  mju_user_warning = on_warning;
}

const char* em_last_error(void) { return last_error; }

int em_version_header(void) { return mjVERSION_HEADER; }

void em_layout(size_t out[6]) {
  out[0] = sizeof(em_asset);
  out[1] = sizeof(em_model_view);
  out[2] = sizeof(em_data_view);
  out[3] = sizeof(em_contact);
  out[4] = sizeof(em_camera);
  out[5] = sizeof(em_quality);
}

// ---- model ----------------------------------------------------------------------------------------------------------

static mjModel* load(const char* path, const mjVFS* vfs, char* warning, int warning_len) {
  mjModel* m = NULL;
  char message[sizeof last_error] = "";
  GUARD(NULL, m = mj_loadXML(path, vfs, message, sizeof message));
  if (!m) {
    fail(message);
    return NULL;
  }
  snprintf(warning, warning_len, "%s", message);
  return m;
}

mjModel* em_model_load_file(const char* path, char* warning, int warning_len) {
  return load(path, NULL, warning, warning_len);
}

mjModel* em_model_load_string(const char* xml, int len, const em_asset* assets, int nasset, char* warning,
                              int warning_len) {
  static const char* const root = "model.xml";
  mjVFS vfs;
  mj_defaultVFS(&vfs);
  int status = mj_addBufferVFS(&vfs, root, xml, len);
  const char* name = root;
  for (int i = 0; i < nasset && status == 0; i++) {
    name = assets[i].name;
    status = mj_addBufferVFS(&vfs, name, assets[i].bytes, assets[i].len);
  }
  mjModel* m = NULL;
  if (status == 0) {
    m = load(root, &vfs, warning, warning_len);
  } else {
    snprintf(last_error, sizeof last_error, status == 2 ? "asset `%s` is given twice" : "asset `%s` cannot be added", name);
  }
  mj_deleteVFS(&vfs);
  return m;
}

// Everything that src/edit.rs can set, with its number of elements.
#define LAYERED(X)                                                                                       \
  X(body_pos, 3 * m->nbody)                                                                              \
  X(body_quat, 4 * m->nbody)                                                                             \
  X(geom_size, 3 * m->ngeom)                                                                             \
  X(geom_aabb, 6 * m->ngeom)                                                                             \
  X(geom_rbound, m->ngeom)                                                                               \
  X(geom_friction, 3 * m->ngeom)                                                                         \
  X(geom_pos, 3 * m->ngeom)                                                                              \
  X(geom_quat, 4 * m->ngeom)                                                                             \
  X(site_pos, 3 * m->nsite)                                                                              \
  X(site_quat, 4 * m->nsite)                                                                             \
  X(cam_pos, 3 * m->ncam)                                                                                \
  X(cam_quat, 4 * m->ncam)                                                                               \
  X(cam_fovy, m->ncam)                                                                                   \
  X(light_pos, 3 * m->nlight)                                                                            \
  X(light_dir, 3 * m->nlight)                                                                            \
  X(geom_rgba, 4 * m->ngeom)                                                                             \
  X(site_rgba, 4 * m->nsite)                                                                             \
  X(mat_rgba, 4 * m->nmat)                                                                               \
  X(light_ambient, 3 * m->nlight)                                                                        \
  X(light_diffuse, 3 * m->nlight)                                                                        \
  X(light_specular, 3 * m->nlight)                                                                       \
  X(light_active, m->nlight)                                                                             \
  X(light_castshadow, m->nlight)                                                                         \
  X(geom_sameframe, m->ngeom)                                                                            \
  X(site_sameframe, m->nsite)

mjModel* em_model_layer(const mjModel* m) {
  // One block: the struct, then the arrays in falling order of alignment (the list above has doubles first).
  size_t size = (sizeof(mjModel) + 15) / 16 * 16;
#define X(name, count) size += sizeof(*m->name) * (size_t)(count);
  LAYERED(X)
#undef X
  mjModel* layer = malloc(size);
  if (!layer) {
    fail("out of memory");
    return NULL;
  }
  *layer = *m;
  char* place = (char*)layer + (sizeof(mjModel) + 15) / 16 * 16;
#define X(name, count)                                      \
  {                                                         \
    const size_t bytes = sizeof(*m->name) * (size_t)(count); \
    if (bytes) memcpy(place, m->name, bytes);               \
    layer->name = (void*)place;                             \
    place += bytes;                                         \
  }
  LAYERED(X)
#undef X
  return layer;
}

void em_model_layer_free(mjModel* m) { free(m); }

void em_model_compute_sensors(mjModel* m, int on) {
  m->opt.disableflags = on ? m->opt.disableflags & ~mjDSBL_SENSOR : m->opt.disableflags | mjDSBL_SENSOR;
}

void em_model_free(mjModel* m) { mj_deleteModel(m); }

void em_model_view_of(mjModel* m, em_model_view* v) {
  // The casts: newer versions have a boolean type, of one byte too.
  *v = (em_model_view){
      .nq = m->nq, .nv = m->nv, .nu = m->nu, .na = m->na, .nbody = m->nbody, .njnt = m->njnt, .ngeom = m->ngeom,
      .nsite = m->nsite, .ncam = m->ncam, .nlight = m->nlight, .nmat = m->nmat, .nmocap = m->nmocap,
      .nsensor = m->nsensor, .nsensordata = m->nsensordata, .nkey = m->nkey,
      .nstate = mj_stateSize(m, mjSTATE_INTEGRATION),
      .body_parentid = m->body_parentid, .body_mocapid = m->body_mocapid, .geom_bodyid = m->geom_bodyid,
      .geom_type = m->geom_type, .geom_group = m->geom_group, .site_bodyid = m->site_bodyid, .jnt_type = m->jnt_type,
      .jnt_qposadr = m->jnt_qposadr, .jnt_dofadr = m->jnt_dofadr, .jnt_bodyid = m->jnt_bodyid,
      .dof_jntid = m->dof_jntid, .sensor_adr = m->sensor_adr, .sensor_dim = m->sensor_dim,
      .jnt_limited = (const unsigned char*)m->jnt_limited, .actuator_ctrllimited = (const unsigned char*)m->actuator_ctrllimited,
      .timestep = &m->opt.timestep, .gravity = m->opt.gravity, .extent = &m->stat.extent,
      .qpos0 = m->qpos0, .jnt_range = m->jnt_range, .actuator_ctrlrange = m->actuator_ctrlrange,
      .body_mass = m->body_mass, .body_pos = m->body_pos, .body_quat = m->body_quat,
      .body_subtreemass = m->body_subtreemass, .geom_size = m->geom_size, .geom_aabb = m->geom_aabb,
      .geom_rbound = m->geom_rbound, .geom_sameframe = (unsigned char*)m->geom_sameframe,
      .site_sameframe = (unsigned char*)m->site_sameframe, .geom_friction = m->geom_friction,
      .geom_pos = m->geom_pos, .geom_quat = m->geom_quat, .site_pos = m->site_pos, .site_quat = m->site_quat,
      .cam_pos = m->cam_pos, .cam_quat = m->cam_quat, .cam_fovy = m->cam_fovy, .light_pos = m->light_pos,
      .light_dir = m->light_dir,
      .geom_rgba = m->geom_rgba, .site_rgba = m->site_rgba, .mat_rgba = m->mat_rgba,
      .light_ambient = m->light_ambient, .light_diffuse = m->light_diffuse, .light_specular = m->light_specular,
      .head_ambient = m->vis.headlight.ambient, .head_diffuse = m->vis.headlight.diffuse,
      .head_specular = m->vis.headlight.specular,
      .light_active = (unsigned char*)m->light_active, .light_castshadow = (unsigned char*)m->light_castshadow,
  };
}

static int object_type(int kind) {
  static const int types[] = {mjOBJ_BODY,  mjOBJ_JOINT,    mjOBJ_GEOM,     mjOBJ_SITE,   mjOBJ_CAMERA,
                              mjOBJ_LIGHT, mjOBJ_MATERIAL, mjOBJ_ACTUATOR, mjOBJ_SENSOR, mjOBJ_KEY};
  return types[kind];
}

int em_name_id(const mjModel* m, int kind, const char* name) { return mj_name2id(m, object_type(kind), name); }

const char* em_id_name(const mjModel* m, int kind, int id) { return mj_id2name(m, object_type(kind), id); }

// ---- data -----------------------------------------------------------------------------------------------------------

mjData* em_data_new(const mjModel* m) {
  mjData* d = NULL;
  GUARD(NULL, d = mj_makeData(m));
  if (!d) fail("out of memory");
  return d;
}

mjData* em_data_copy(const mjModel* m, const mjData* d) {
  mjData* copy = NULL;
  GUARD(NULL, copy = mj_copyData(NULL, m, d));
  if (!copy) fail("out of memory");
  return copy;
}

void em_data_free(mjData* d) { mj_deleteData(d); }

void em_data_view_of(mjData* d, em_data_view* v) {
  *v = (em_data_view){
      .time = &d->time, .qpos = d->qpos, .qvel = d->qvel, .act = d->act, .ctrl = d->ctrl, .qacc = d->qacc,
      .qacc_warmstart = d->qacc_warmstart,
      .qfrc_applied = d->qfrc_applied, .xfrc_applied = d->xfrc_applied, .qfrc_bias = d->qfrc_bias,
      .qfrc_passive = d->qfrc_passive, .qfrc_actuator = d->qfrc_actuator, .qfrc_constraint = d->qfrc_constraint,
      .actuator_force = d->actuator_force, .mocap_pos = d->mocap_pos, .mocap_quat = d->mocap_quat,
      .xpos = d->xpos, .xquat = d->xquat, .xmat = d->xmat, .xipos = d->xipos, .geom_xpos = d->geom_xpos,
      .geom_xmat = d->geom_xmat, .site_xpos = d->site_xpos, .site_xmat = d->site_xmat, .cam_xpos = d->cam_xpos,
      .cam_xmat = d->cam_xmat, .sensordata = d->sensordata,
  };
}

int em_reset(const mjModel* m, mjData* d, int keyframe) {
  GUARD_DATA(d, if (keyframe < 0) mj_resetData(m, d); else mj_resetDataKeyframe(m, d, keyframe));
  return EM_OK;
}

// Whether MuJoCo has counted an instability; if so, the state is reset.
static int unstable(const mjModel* m, mjData* d, int* quantity, int* index) {
  // in the order of EM_BAD_*
  static const int kinds[] = {mjWARN_BADQPOS, mjWARN_BADQVEL, mjWARN_BADQACC, mjWARN_BADCTRL};
  for (int i = 0; i < 4; i++) {
    const mjWarningStat* w = &d->warning[kinds[i]];
    if (w->number) {
      *quantity = i;
      *index = w->lastinfo;
      // MuJoCo has reset by itself, but also integrated once since, or (bad controls) carried on with zeros.
      mj_resetData(m, d);
      return 1;
    }
  }
  return 0;
}

#define STEPS(count, advance)                \
  int bad = 0;                               \
  GUARD_DATA(d, {                            \
    for (int step = 0; step < (count) && !bad; step++) { \
      *time = d->time;                       \
      advance(m, d);                         \
      bad = unstable(m, d, quantity, index); \
    }                                        \
  });                                        \
  return bad ? EM_UNSTABLE : EM_OK

int em_step(const mjModel* m, mjData* d, int n, int* quantity, int* index, double* time) { STEPS(n, mj_step); }

int em_step1(const mjModel* m, mjData* d, int* quantity, int* index, double* time) { STEPS(1, mj_step1); }

int em_step2(const mjModel* m, mjData* d, int* quantity, int* index, double* time) { STEPS(1, mj_step2); }

int em_forward(const mjModel* m, mjData* d) {
  GUARD_DATA(d, mj_forward(m, d));
  return EM_OK;
}

int em_forward_acceleration(const mjModel* m, mjData* d) {
  GUARD_DATA(d, mj_forwardSkip(m, d, mjSTAGE_VEL, 1));
  return EM_OK;
}

int em_forward_position(const mjModel* m, mjData* d) {
  GUARD_DATA(d, mj_fwdPosition(m, d));
  return EM_OK;
}

int em_kinematics(const mjModel* m, mjData* d) {
  GUARD_DATA(d, {
    mj_kinematics(m, d);
    mj_comPos(m, d);
    mj_camlight(m, d);
    mj_flex(m, d);
    mj_tendon(m, d);
  });
  return EM_OK;
}

int em_ray(const mjModel* m, const mjData* d, const double* from, const double* along, const unsigned char* groups,
           int body_excluded, double* distance, int* geom) {
  *geom = -1;
#if mjVERSION_HEADER >= 3010000  // up to 3.4.0 the number is 340
  GUARD(EM_ERROR, *distance = mj_ray(m, d, from, along, (const mjtByte*)groups, 1, body_excluded, geom, NULL));
#else
  GUARD(EM_ERROR, *distance = mj_ray(m, d, from, along, groups, 1, body_excluded, geom));
#endif
  return EM_OK;
}

int em_state_get(const mjModel* m, const mjData* d, double* out) {
  GUARD(EM_ERROR, mj_getState(m, d, out, mjSTATE_INTEGRATION));
  return EM_OK;
}

int em_state_set(const mjModel* m, mjData* d, const double* in) {
  GUARD_DATA(d, mj_setState(m, d, in, mjSTATE_INTEGRATION));
  return EM_OK;
}

int em_jac_site(const mjModel* m, mjData* d, int site, double* jacp, double* jacr) {
  GUARD_DATA(d, mj_jacSite(m, d, jacp, jacr, site));
  return EM_OK;
}

int em_jac_point(const mjModel* m, mjData* d, int body, const double* point, double* jacp, double* jacr) {
  GUARD_DATA(d, mj_jac(m, d, jacp, jacr, point, body));
  return EM_OK;
}

int em_mass_matrix(const mjModel* m, mjData* d, double* out) {
#if mjVERSION_HEADER >= 3010000  // up to 3.4.0 the number is 340
  GUARD_DATA(d, mj_fullM(m, d, out));
#else
  GUARD_DATA(d, mj_fullM(m, out, d->qM));
#endif
  return EM_OK;
}

int em_mass_block(const mjModel* m, mjData* d, const int* dofs, int n, double* out) {
  for (int i = 0; i < n; i++) {
    for (int k = 0; k < n; k++) out[i * n + k] = 0;
  }
  for (int i = 0; i < n; i++) {
    // A row holds the columns of the degree of freedom and of those that it hangs on.
#if mjVERSION_HEADER >= 3010000
    for (int e = m->M_rowadr[dofs[i]]; e < m->M_rowadr[dofs[i]] + m->M_rownnz[dofs[i]]; e++) {
      const int column = m->M_colind[e];
      const double value = d->M[e];
#else
    for (int column = dofs[i], e = m->dof_Madr[dofs[i]]; column >= 0; column = m->dof_parentid[column], e++) {
      const double value = d->qM[e];
#endif
      for (int k = 0; k < n; k++) {
        if (dofs[k] == column) out[i * n + k] = out[k * n + i] = value;
      }
    }
  }
  return EM_OK;
}

int em_velocity(const mjModel* m, mjData* d, int kind, int id, double* out) {
  // A body's own frame, not the frame of its inertia.
  const int type = kind == EM_BODY ? mjOBJ_XBODY : object_type(kind);
  GUARD_DATA(d, mj_objectVelocity(m, d, type, id, out, 0));
  return EM_OK;
}

int em_contact_count(const mjData* d) { return d->ncon; }

void em_contact_at(const mjModel* m, const mjData* d, int index, em_contact* out) {
  const mjContact* c = d->contact + index;
  out->dist = c->dist;
  memcpy(out->pos, c->pos, sizeof out->pos);
  memcpy(out->normal, c->frame, sizeof out->normal);
  mj_contactForce(m, d, index, out->force);
  out->geom1 = c->geom[0];
  out->geom2 = c->geom[1];
}

void em_contact_geoms(const mjData* d, int index, int out[2]) {
  out[0] = d->contact[index].geom[0];
  out[1] = d->contact[index].geom[1];
}

int em_overflow_count(const mjData* d) {
  // The kinds of overflow lie between these two; how many there are depends on the version.
  int count = 0;
  for (int kind = mjWARN_CONTACTFULL; kind < mjWARN_BADQPOS; kind++) count += d->warning[kind].number;
  return count;
}

// ---- renderer -------------------------------------------------------------------------------------------------------

struct em_renderer {
  em_gl* gl;
  int has_scene, has_context;
  int width, height;
  int show_all;  // also what the picture cannot show
  mjvOption option;
  mjvScene scene;
  mjrContext context;
};

static int renderer_init(em_renderer* r, const mjModel* m, em_quality quality) {
  char why[512] = "";
  r->gl = em_gl_new(why, sizeof why);
  if (!r->gl) {
    fail(why);
    return EM_ERROR;
  }
  mjv_defaultOption(&r->option);
  mjv_defaultScene(&r->scene);
  mjr_defaultContext(&r->context);

  // The sizes of the buffers are read from the model. Ours may be shared between threads, so we hand over a shallow
  // copy with our own sizes; mjr_makeContext only reads.
  mjModel sized = *m;
  sized.vis.global.offwidth = r->width;
  sized.vis.global.offheight = r->height;
  sized.vis.quality.offsamples = quality.samples;
  if (!quality.shadows) sized.vis.quality.shadowsize = 0;
  GUARD(EM_ERROR, {
    // Twice the objects that can be visible, and room for decoration that a user switches on.
    mjv_makeScene(m, &r->scene, 2 * (m->ngeom + m->nsite + m->ntendon) + 1000);
    r->has_scene = 1;
    mjr_makeContext(&sized, &r->context, mjFONTSCALE_50);
    r->has_context = 1;
  });
  r->scene.flags[mjRND_SHADOW] = quality.shadows != 0;
  r->scene.flags[mjRND_REFLECTION] = quality.reflections != 0;
  // Depth is kept reversed: floats are finest near zero, which is where far things are then.
  r->context.readDepthMap = mjDEPTH_ZEROFAR;
  mjr_setBuffer(mjFB_OFFSCREEN, &r->context);
  if (r->context.currentBuffer != mjFB_OFFSCREEN || r->context.offWidth != r->width || r->context.offHeight != r->height) {
    fail("the OpenGL driver gave no offscreen buffer of this size");
    return EM_ERROR;
  }
  return EM_OK;
}

em_renderer* em_renderer_new(const mjModel* m, int width, int height, em_quality quality) {
  em_renderer* r = calloc(1, sizeof *r);
  if (!r) {
    fail("out of memory");
    return NULL;
  }
  r->width = width;
  r->height = height;
  if (renderer_init(r, m, quality) != EM_OK) {
    em_renderer_free(r);
    return NULL;
  }
  return r;
}

static void renderer_release(em_renderer* r) {
  GUARD(, {
    if (r->has_context) mjr_freeContext(&r->context);
    if (r->has_scene) mjv_freeScene(&r->scene);
  });
}

void em_renderer_free(em_renderer* r) {
  char why[64];
  if (r->gl && em_gl_make_current(r->gl, why, sizeof why) == 0) renderer_release(r);
  if (r->gl) em_gl_free(r->gl);
  free(r);
}

static void set_camera(mjvCamera* out, const em_camera* camera) {
  mjv_defaultCamera(out);
  if (camera->fixed_id >= 0) {
    out->type = mjCAMERA_FIXED;
    out->fixedcamid = camera->fixed_id;
    return;
  }
  out->type = mjCAMERA_FREE;
  memcpy(out->lookat, camera->lookat, sizeof out->lookat);
  out->distance = camera->distance;
  out->azimuth = camera->azimuth;
  out->elevation = camera->elevation;
}

// Undoes the (reversed) projection in place: metres along the optical axis.
static void metres(const mjvGLCamera* camera, float* depth, int n) {
  const float near = camera->frustum_near, far = camera->frustum_far, span = far - near;
  if (camera->orthographic) {
    for (int i = 0; i < n; i++) depth[i] = far - depth[i] * span;
  } else {
    for (int i = 0; i < n; i++) depth[i] = far * near / (depth[i] * span + near);
  }
}

// The segmentation colour of a pixel is 1 + segid in 24 bits; 0 is background.
static void geom_ids(const mjvScene* scene, const unsigned char* rgb, int* ids, int n, int* map) {
  for (int i = 0; i < scene->ngeom; i++) map[i] = -2;
  for (int i = 0; i < scene->ngeom; i++) {
    const mjvGeom* g = scene->geoms + i;
    if (g->segid >= 0 && g->segid < scene->ngeom) map[g->segid] = g->objtype == mjOBJ_GEOM ? g->objid : -2;
  }
  for (int i = 0; i < n; i++, rgb += 3) {
    const int segment = rgb[0] + (rgb[1] << 8) + (rgb[2] << 16) - 1;
    ids[i] = segment < 0 ? -1 : segment < scene->ngeom ? map[segment] : -2;
  }
}

// Reflecting surfaces of which mirror images are looked after; scenes with more are drawn whole.
enum { MAX_MIRRORS = 64 };

// A plane that MuJoCo draws mirror images in, and where it is: mirror images are seen through the surface only.
typedef struct {
  float point[3], normal[3];
  float centre[3], radius;  // radius 0: without bounds
} mirror;

// The pyramid that a picture shows: inward normals of its four sides and of the plane behind which nothing is seen, all
// through the camera.
enum { SIDES = 5 };
typedef struct {
  float eye[3], normals[SIDES][3];
} pyramid;

// A geom's bounding box.
typedef struct {
  float corners[8][3];
} bounds;

static float dot(const float* a, const float* b) { return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]; }

static pyramid seen_by(const mjvGLCamera* camera, float aspect) {
  pyramid p;
  const float *f = camera->forward, *u = camera->up, near = camera->frustum_near;
  const float right[3] = {f[1] * u[2] - f[2] * u[1], f[2] * u[0] - f[0] * u[2], f[0] * u[1] - f[1] * u[0]};
  const float width = 0.5f * aspect * (camera->frustum_top - camera->frustum_bottom);
  for (int i = 0; i < 3; i++) {
    p.eye[i] = camera->pos[i];
    p.normals[0][i] = u[i] * near - f[i] * camera->frustum_bottom;
    p.normals[1][i] = f[i] * camera->frustum_top - u[i] * near;
    p.normals[2][i] = right[i] * near - f[i] * (camera->frustum_center - width);
    p.normals[3][i] = f[i] * (camera->frustum_center + width) - right[i] * near;
    p.normals[4][i] = f[i];
  }
  for (int k = 0; k < SIDES; k++) {
    const float length = sqrtf(dot(p.normals[k], p.normals[k]));
    for (int i = 0; i < 3; i++) p.normals[k][i] /= length;
  }
  return p;
}

static bounds box_of(const mjModel* m, const mjvGeom* g) {
  bounds b;
  const mjtNum* aabb = m->geom_aabb + 6 * g->objid;
  for (int c = 0; c < 8; c++) {
    float local[3];
    for (int i = 0; i < 3; i++) {
      // The margin is for rounding to single precision.
      const float half = (float)aabb[3 + i] * 1.001f + 1e-4f;
      local[i] = (float)aabb[i] + (c >> i & 1 ? half : -half);
    }
    for (int i = 0; i < 3; i++) b.corners[c][i] = g->pos[i] + dot(g->mat + 3 * i, local);
  }
  return b;
}

static bounds mirrored(const bounds* b, const mirror* in) {
  bounds image;
  for (int c = 0; c < 8; c++) {
    const float* from = b->corners[c];
    const float away[3] = {from[0] - in->point[0], from[1] - in->point[1], from[2] - in->point[2]};
    const float height = 2 * dot(in->normal, away);
    for (int i = 0; i < 3; i++) image.corners[c][i] = from[i] - height * in->normal[i];
  }
  return image;
}

// A ball around a box.
static float ball(const bounds* b, float centre[3]) {
  for (int i = 0; i < 3; i++) centre[i] = 0.5f * (b->corners[0][i] + b->corners[7][i]);
  const float half[3] = {b->corners[7][0] - centre[0], b->corners[7][1] - centre[1], b->corners[7][2] - centre[2]};
  return sqrtf(dot(half, half));
}

static int reaches_into(const pyramid* p, const bounds* b) {
  for (int k = 0; k < SIDES; k++) {
    int inside = 0;
    for (int c = 0; c < 8 && !inside; c++) {
      const float* x = b->corners[c];
      const float away[3] = {x[0] - p->eye[0], x[1] - p->eye[1], x[2] - p->eye[2]};
      inside = dot(p->normals[k], away) >= 0;
    }
    if (!inside) return 0;
  }
  return 1;
}

// Whether the eye sees some of one ball through another, which stands for a surface somewhere inside it.
static int seen_through(const float eye[3], const float window[3], float window_radius, const bounds* b) {
  float centre[3];
  const float radius = ball(b, centre);
  const float to_window[3] = {window[0] - eye[0], window[1] - eye[1], window[2] - eye[2]};
  const float to_ball[3] = {centre[0] - eye[0], centre[1] - eye[1], centre[2] - eye[2]};
  const float window_distance = sqrtf(dot(to_window, to_window)), distance = sqrtf(dot(to_ball, to_ball));
  if (window_distance <= window_radius || distance <= radius) return 1;
  const float cosine = dot(to_window, to_ball) / (window_distance * distance);
  const float between = acosf(cosine > 1 ? 1 : cosine < -1 ? -1 : cosine);
  return between <= asinf(window_radius / window_distance) + asinf(radius / distance) + 1e-3f;
}

// Whether something is a geom of the model with a known end; planes have none.
static int bounded(const mjModel* m, const mjvGeom* g) {
  return g->objtype == mjOBJ_GEOM && g->objid >= 0 && g->objid < m->ngeom && m->geom_rbound[g->objid] > 0;
}

// Leaves out the geoms whose bounding boxes are outside the picture, and whose mirror images are. MuJoCo itself draws
// everything; a hand camera sees little of the arm, which has most of the triangles. The picture is the same to the last
// bit. With shadows what is not seen may still darken what is, so then nothing is left out.
static void leave_out_unseen(const mjModel* m, mjvScene* scene, float aspect) {
  // Segmentation counts what it drew.
  if (scene->camera[0].orthographic || scene->flags[mjRND_SEGMENT]) return;
  if (scene->flags[mjRND_SHADOW])
    for (int i = 0; i < scene->nlight; i++)
      if (scene->lights[i].castshadow) return;
  const pyramid view = seen_by(&scene->camera[0], aspect);
  mirror mirrors[MAX_MIRRORS];
  int count = 0;
  for (int i = 0; scene->flags[mjRND_REFLECTION] && i < scene->ngeom; i++) {
    const mjvGeom* g = scene->geoms + i;
    if (g->reflectance <= 0 || (g->type != mjGEOM_PLANE && g->type != mjGEOM_BOX)) continue;
    if (count == MAX_MIRRORS) return;
    mirror* to = mirrors + count;
    // The surface whose outward normal is the geom's z axis.
    for (int k = 0; k < 3; k++) {
      to->normal[k] = g->mat[3 * k + 2];
      to->point[k] = g->pos[k] + (g->type == mjGEOM_BOX ? g->size[2] * g->mat[3 * k + 2] : 0);
    }
    to->radius = 0;
    if (!bounded(m, g)) {
      count++;
      continue;
    }
    const bounds here = box_of(m, g);
    to->radius = ball(&here, to->centre);
    // One that is out of the picture shows nothing.
    if (reaches_into(&view, &here)) count++;
  }
  int kept = 0;
  for (int i = 0; i < scene->ngeom; i++) {
    const mjvGeom* g = scene->geoms + i;
    int keep = !bounded(m, g);
    if (!keep) {
      const bounds here = box_of(m, g);
      keep = reaches_into(&view, &here);
      for (int k = 0; !keep && k < count; k++) {
        const bounds image = mirrored(&here, mirrors + k);
        keep = reaches_into(&view, &image) &&
               (mirrors[k].radius == 0 || seen_through(view.eye, mirrors[k].centre, mirrors[k].radius, &image));
      }
    }
    if (keep) scene->geoms[kept++] = *g;
  }
  scene->ngeom = kept;
}

// Draws and reads back either the colours or the depth, bottom row first.
static int draw(em_renderer* r, const mjModel* m, mjData* d, mjvCamera* view, unsigned char* rgb, float* depth) {
  const mjrRect viewport = {0, 0, r->width, r->height};
  GUARD_DATA(d, {
    mjr_setBuffer(mjFB_OFFSCREEN, &r->context);
    mjv_updateScene(m, d, &r->option, NULL, view, mjCAT_ALL, &r->scene);
    if (!r->show_all) leave_out_unseen(m, &r->scene, (float)r->width / (float)r->height);
    mjr_render(viewport, &r->scene, &r->context);
    mjr_readPixels(rgb, depth, viewport, &r->context);
  });
  // Only what spoils the picture counts: memory (0x0505), framebuffer (0x0506), lost context (0x0507). MuJoCo itself
  // binds a texture to the wrong target in every frame of LIBERO's kitchens (0x0502), which OpenGL ignores.
  int gl_error = 0, next;
  for (int i = 0; i < 64 && (next = mjr_getError()); i++) {
    if (next >= 0x0505 && next <= 0x0507) gl_error = next;
  }
  if (!gl_error) return EM_OK;
  snprintf(last_error, sizeof last_error, "OpenGL error 0x%04x while drawing", gl_error);
  return EM_ERROR;
}

int em_renderer_draw(em_renderer* r, const mjModel* m, mjData* d, const em_camera* camera, int what, unsigned char* rgb,
                     float* depth, int* ids) {
  char why[512];
  if (em_gl_make_current(r->gl, why, sizeof why)) {
    fail(why);
    return EM_ERROR;
  }
  mjvCamera view;
  set_camera(&view, camera);
  // Depth too is drawn in flat colours: faster, and not blended between the samples of a pixel.
  r->scene.flags[mjRND_SEGMENT] = r->scene.flags[mjRND_IDCOLOR] = what != EM_RGB;
  const int status = draw(r, m, d, &view, what == EM_DEPTH ? NULL : rgb, what == EM_DEPTH ? depth : NULL);
  if (status != EM_OK) return status;

  const int n = r->width * r->height;
  if (what == EM_DEPTH) metres(&r->scene.camera[0], depth, n);
  if (what == EM_SEGMENTATION) {
    int* map = malloc(sizeof(int) * (r->scene.ngeom + 1));
    if (!map) {
      fail("out of memory");
      return EM_ERROR;
    }
    geom_ids(&r->scene, rgb, ids, n, map);
    free(map);
  }
  return EM_OK;
}

int em_renderer_samples(const em_renderer* r) { return r->context.offSamples; }

const char* em_renderer_driver(em_renderer* r) {
  char why[64];
  return em_gl_make_current(r->gl, why, sizeof why) == 0 ? em_gl_driver() : "";
}

int em_renderer_drawn(const em_renderer* r) { return r->scene.ngeom; }

void em_renderer_draw_unseen(em_renderer* r, int unseen) { r->show_all = unseen != 0; }

void em_renderer_show_group(em_renderer* r, int sites, int group, int visible) {
  (sites ? r->option.sitegroup : r->option.geomgroup)[group] = visible != 0;
}
