// A ring of spheres on a chequered floor. Replace it with a scene of your own.
#version 3.7;
global_settings { assumed_gamma 1.0 }
camera { location <0, 2.2, -6> look_at <0, 0.6, 0> right x * image_width / image_height }
light_source { <6, 9, -7> color rgb 1 }
sky_sphere { pigment { gradient y color_map { [0 color rgb <0.9, 0.95, 1>] [1 color rgb <0.2, 0.4, 0.8>] } } }
plane { y, 0 pigment { checker color rgb 0.9, color rgb <0.35, 0.4, 0.5> } finish { reflection 0.12 } }
#for (i, 0, 6)
  sphere {
    <1.9 * cos(i * pi / 3.5), 0.55 + 0.1 * i, 1.9 * sin(i * pi / 3.5)>, 0.55
    pigment { color rgb <0.5 + 0.5 * sin(i), 0.5 + 0.5 * sin(i + 2), 0.5 + 0.5 * sin(i + 4)> }
    finish { phong 0.8 reflection 0.25 }
  }
#end
