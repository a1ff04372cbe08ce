//! Reading what [`crate::Model`]'s setters change about cameras, lights and materials.

use crate::Model;

impl Model {
    /// Place of a camera in its body's frame, metres.
    pub fn camera_pos(&self, camera: usize) -> [f64; 3] {
        self.read(self.view.cam_pos, self.view.ncam, camera)
    }

    /// Orientation of a camera in its body's frame, wxyz; it looks along its -z, with y up.
    pub fn camera_quat(&self, camera: usize) -> [f64; 4] {
        self.read(self.view.cam_quat, self.view.ncam, camera)
    }

    /// Place of a light in its body's frame, metres.
    pub fn light_pos(&self, light: usize) -> [f64; 3] {
        self.read(self.view.light_pos, self.view.nlight, light)
    }

    /// Direction of a light in its body's frame, unit length.
    pub fn light_dir(&self, light: usize) -> [f64; 3] {
        self.read(self.view.light_dir, self.view.nlight, light)
    }

    /// Diffuse colour of a light, each in 0..=1.
    pub fn light_diffuse(&self, light: usize) -> [f32; 3] {
        self.read(self.view.light_diffuse, self.view.nlight, light)
    }

    /// Specular colour of a light, each in 0..=1.
    pub fn light_specular(&self, light: usize) -> [f32; 3] {
        self.read(self.view.light_specular, self.view.nlight, light)
    }

    /// Whether a light throws shadows.
    pub fn light_casts_shadow(&self, light: usize) -> bool {
        let [casts] = self.read(self.view.light_castshadow, self.view.nlight, light);
        casts != 0
    }

    /// Colour of a material, each in 0..=1; its texture is multiplied with it.
    pub fn material_rgba(&self, material: usize) -> [f32; 4] {
        self.read(self.view.mat_rgba, self.view.nmat, material)
    }
}
