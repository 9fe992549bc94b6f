"use strict";
// Shows the morph and the slices from the numbers in the element "data". Nothing is fetched.
(async () => {
  const byId = (id) => document.getElementById(id);
  const data = JSON.parse(byId("data").textContent);

  function problem(text) {
    byId("problem").textContent = text;
    byId("problem").hidden = false;
  }

  // Bytes from base64 of a zlib stream.
  async function unpacked(text) {
    const letters = atob(text), bytes = new Uint8Array(letters.length);
    for (let i = 0; i < bytes.length; i++) bytes[i] = letters.charCodeAt(i);
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    return new Uint8Array(await new Response(stream).arrayBuffer());
  }

  // Densities that the 256 codes of a volume stand for: finer towards the low end, or signed for the difference.
  function densities(volume) {
    const { low, high, signed } = volume;
    return Float32Array.from({ length: 256 }, (_, code) =>
      signed ? ((code - 128) / 127) * high : low + (high - low) * (code / 255) ** 2);
  }

  if (typeof DecompressionStream === "undefined") {
    problem("This browser is too old for the turnable surface and the movable slices (Chrome 80, Firefox 113, Safari 16.4 " +
      "or later have what it takes). The pictures show the same.");
    return;
  }
  const volumes = {};
  for (const [name, volume] of Object.entries(data.volumes))
    volumes[name] = { ...volume, codes: await unpacked(volume.data), density: densities(volume) };
  const motion = { ...data.motion, shift: new Int16Array((await unpacked(data.motion.data)).buffer) };

  // ---------------------------------------------------------------------------------------------- surfaces

  // The surface at a level by "surface nets": a vertex in each cell that the surface passes, at the mean of its crossings
  // of the cell's edges, and a quadrilateral around each edge of the grid that it crosses. Vertices are in voxels.
  function surface(volume, level) {
    const [nx, ny, nz] = data.shape, { codes, density } = volume;
    const step = [ny * nz, nz, 1];
    const corners = [], edges = [];
    for (let c = 0; c < 8; c++) corners.push((c & 1) * step[0] + ((c >> 1) & 1) * step[1] + ((c >> 2) & 1) * step[2]);
    for (let c = 0; c < 8; c++) for (const bit of [1, 2, 4]) if (!(c & bit)) edges.push([c, c | bit]);
    let inside = 256; // the lowest code above the level
    while (inside > 0 && density[inside - 1] > level) inside--;
    const vertices = [], triangles = [], numbers = new Int32Array(codes.length);
    for (let x = 0; x < nx - 1; x++) for (let y = 0; y < ny - 1; y++) {
      for (let z = 0, cell = x * step[0] + y * step[1]; z < nz - 1; z++, cell++) {
        let mask = 0;
        for (let c = 0; c < 8; c++) if (codes[cell + corners[c]] >= inside) mask |= 1 << c;
        if (mask === 0 || mask === 255) continue;
        let sx = 0, sy = 0, sz = 0, count = 0;
        for (const [a, b] of edges) {
          if (((mask >> a) & 1) === ((mask >> b) & 1)) continue;
          const da = density[codes[cell + corners[a]]], db = density[codes[cell + corners[b]]];
          const share = (level - da) / (db - da);
          sx += (a & 1) + share * ((b & 1) - (a & 1));
          sy += ((a >> 1) & 1) + share * (((b >> 1) & 1) - ((a >> 1) & 1));
          sz += ((a >> 2) & 1) + share * (((b >> 2) & 1) - ((a >> 2) & 1));
          count++;
        }
        numbers[cell] = vertices.length / 3;
        vertices.push(x + sx / count, y + sy / count, z + sz / count);
        const at = [x, y, z];
        for (let axis = 0; axis < 3; axis++) {
          const b = (axis + 1) % 3, c = (axis + 2) % 3;
          if ((mask & 1) === ((mask >> (1 << axis)) & 1) || !at[b] || !at[c]) continue;
          let ring = [cell, cell - step[b], cell - step[b] - step[c], cell - step[c]];
          if (!(mask & 1)) ring = ring.reverse();
          const [p, q, r, s] = ring.map((i) => numbers[i]);
          triangles.push(p, q, r, p, r, s);
        }
      }
    }
    return { vertices: new Float32Array(vertices), triangles: new Uint32Array(triangles) };
  }

  // Positions (Å) of vertices given in voxels.
  function placed(vertices) {
    return vertices.map((value, i) => data.origin[i % 3] + value * data.voxel[i % 3]);
  }

  // Displacements (Å) of positions at a knot of the motion, linear between its nodes.
  function shifts(positions, knot) {
    const [nx, ny, nz] = motion.shape, out = new Float32Array(positions.length);
    const base = knot * nx * ny * nz * 3, { shift, scale, origin, spacing } = motion;
    const clamp = (value, n) => Math.min(Math.max(value, 0), n - 1.000001);
    for (let i = 0; i < positions.length; i += 3) {
      const gx = clamp((positions[i] - origin[0]) / spacing, nx), gy = clamp((positions[i + 1] - origin[1]) / spacing, ny);
      const gz = clamp((positions[i + 2] - origin[2]) / spacing, nz);
      const x = Math.floor(gx), y = Math.floor(gy), z = Math.floor(gz), fx = gx - x, fy = gy - y, fz = gz - z;
      for (let corner = 0; corner < 8; corner++) {
        const a = corner & 1, b = (corner >> 1) & 1, c = corner >> 2;
        const weight = (a ? fx : 1 - fx) * (b ? fy : 1 - fy) * (c ? fz : 1 - fz) * scale;
        const node = base + (((x + a) * ny + y + b) * nz + z + c) * 3;
        for (let k = 0; k < 3; k++) out[i + k] += weight * shift[node + k];
      }
    }
    return out;
  }

  // Directions at right angles to a surface, at its vertices; their length is of no account.
  function normals(positions, triangles) {
    const out = new Float32Array(positions.length);
    for (let t = 0; t < triangles.length; t += 3) {
      const a = 3 * triangles[t], b = 3 * triangles[t + 1], c = 3 * triangles[t + 2];
      const ux = positions[b] - positions[a], uy = positions[b + 1] - positions[a + 1], uz = positions[b + 2] - positions[a + 2];
      const vx = positions[c] - positions[a], vy = positions[c + 1] - positions[a + 1], vz = positions[c + 2] - positions[a + 2];
      const n = [uy * vz - uz * vy, uz * vx - ux * vz, ux * vy - uy * vx];
      for (const corner of [a, b, c]) for (let k = 0; k < 3; k++) out[corner + k] += n[k];
    }
    return out;
  }

  // ---------------------------------------------------------------------------------------------- the scene

  const VERTEX = `#version 300 es
    in vec3 from, to, normal_from, normal_to; in float moved;
    uniform mat3 view; uniform vec3 centre; uniform vec2 scale, pan; uniform float part, radius;
    out vec3 normal; out float share, depth;
    void main() {
      vec3 seen = view * (mix(from, to, part) - centre);
      normal = view * mix(normalize(normal_from + 1e-9), normalize(normal_to + 1e-9), part);
      share = moved; depth = seen.z / radius;
      gl_Position = vec4(seen.xy * scale + pan, -0.4 * depth, 1.0);
    }`;
  const FRAGMENT = `#version 300 es
    precision highp float;
    in vec3 normal; in float share, depth; out vec4 colour;
    uniform vec3 palette[5]; uniform vec4 plain; uniform bool coloured;
    void main() {
      vec3 n = normalize(normal); if (n.z < 0.0) n = -n;
      float at = clamp(share, 0.0, 1.0) * 3.9999; int low = int(at);
      vec3 base = coloured ? mix(palette[low], palette[low + 1], fract(at)) : plain.rgb;
      vec3 light = normalize(vec3(0.35, 0.45, 0.82));
      float lit = 0.42 + 0.58 * max(dot(n, light), 0.0);
      vec3 shade = base * lit + 0.12 * pow(max(dot(n, normalize(light + vec3(0, 0, 1))), 0.0), 30.0);
      float rim = 1.0 - n.z; // the transparent target is clear where one looks straight at it
      colour = vec4(mix(shade, vec3(1.0), 0.12 * clamp(0.5 - depth, 0.0, 1.0)), coloured ? 1.0 : plain.a * (0.25 + rim));
    }`;

  function scene(gl) {
    const program = gl.createProgram();
    for (const [kind, source] of [[gl.VERTEX_SHADER, VERTEX], [gl.FRAGMENT_SHADER, FRAGMENT]]) {
      const shader = gl.createShader(kind);
      gl.shaderSource(shader, source);
      gl.compileShader(shader);
      gl.attachShader(program, shader);
    }
    gl.linkProgram(program);
    if (!gl.getProgramParameter(program, gl.LINK_STATUS)) throw new Error(gl.getProgramInfoLog(program));
    gl.useProgram(program);
    const uniform = (name) => gl.getUniformLocation(program, name);
    const places = Object.fromEntries(["from", "to", "normal_from", "normal_to", "moved"].map(
      (name) => [name, gl.getAttribLocation(program, name)]));
    const colours = data.palette.flatMap((c) => [1, 3, 5].map((k) => parseInt(c.slice(k, k + 2), 16) / 255));
    gl.uniform3fv(uniform("palette"), colours);
    gl.uniform3fv(uniform("centre"), data.centre);
    gl.uniform1f(uniform("radius"), data.radius);
    gl.enable(gl.DEPTH_TEST);
    gl.clearColor(1, 1, 1, 1);

    const buffer = (kind, values) => {
      const made = gl.createBuffer();
      gl.bindBuffer(kind, made);
      gl.bufferData(kind, values, gl.STATIC_DRAW);
      return made;
    };

    // A surface on the graphics card; where it stands at each knot of the motion is worked out when it is first needed.
    function solid(volume, level, moves) {
      const { vertices, triangles } = surface(volume, level), start = placed(vertices);
      const knots = [], last = motion.times.length - 1;
      let moved = new Float32Array(start.length / 3);
      if (moves) {
        const far = shifts(start, last);
        moved = moved.map((_, i) => Math.hypot(far[3 * i], far[3 * i + 1], far[3 * i + 2]) / data.top);
      }
      const index = buffer(gl.ELEMENT_ARRAY_BUFFER, triangles), value = buffer(gl.ARRAY_BUFFER, moved);
      const knot = (k) => {
        if (!knots[k]) {
          const shift = moves && k ? shifts(start, k) : null;
          const positions = shift ? start.map((v, i) => v + shift[i]) : start;
          knots[k] = [buffer(gl.ARRAY_BUFFER, positions), buffer(gl.ARRAY_BUFFER, normals(positions, triangles))];
        }
        return knots[k];
      };
      const remove = () => [index, value, ...knots.flat()].forEach((b) => b && gl.deleteBuffer(b));
      return { index, value, knot, remove, count: triangles.length };
    }

    function draw(what, time) {
      const { times } = motion;
      let k = 0;
      while (k < times.length - 2 && time > times[k + 1]) k++;
      const [from, to] = what === solids.target ? [0, 0] : [k, k + 1];
      const [start, start_normals] = what.knot(from), [end, end_normals] = what.knot(to);
      const given = [["from", start, 3], ["to", end, 3], ["normal_from", start_normals, 3], ["normal_to", end_normals, 3],
        ["moved", what.value, 1]];
      for (const [name, values, size] of given) {
        gl.bindBuffer(gl.ARRAY_BUFFER, values);
        gl.enableVertexAttribArray(places[name]);
        gl.vertexAttribPointer(places[name], size, gl.FLOAT, false, 0, 0);
      }
      gl.uniform1f(uniform("part"), (time - times[k]) / (times[k + 1] - times[k]));
      gl.bindBuffer(gl.ELEMENT_ARRAY_BUFFER, what.index);
      gl.drawElements(gl.TRIANGLES, what.count, gl.UNSIGNED_INT, 0);
    }

    const solids = {};
    function set(name, level) {
      if (solids[name]) solids[name].remove();
      solids[name] = solid(volumes[name], level, name === "initial");
    }

    function show(time, camera, with_target) {
      const { canvas } = gl, ratio = canvas.width / canvas.height;
      gl.viewport(0, 0, canvas.width, canvas.height);
      gl.clear(gl.COLOR_BUFFER_BIT | gl.DEPTH_BUFFER_BIT);
      const size = camera.zoom / data.radius, tall = Math.min(1, ratio * 1.2);
      gl.uniform2f(uniform("scale"), (size * tall) / ratio, size * tall);
      gl.uniform2fv(uniform("pan"), camera.pan);
      gl.uniformMatrix3fv(uniform("view"), true, camera.view.flat());
      gl.uniform1i(uniform("coloured"), 1);
      gl.disable(gl.BLEND);
      draw(solids.initial, time);
      if (!with_target || !solids.target) return;
      gl.uniform1i(uniform("coloured"), 0); // the nearest layer alone: first its depth, then its colour
      gl.uniform4f(uniform("plain"), 0.25, 0.42, 0.6, 0.5);
      gl.colorMask(false, false, false, false);
      draw(solids.target, 0);
      gl.colorMask(true, true, true, true);
      gl.enable(gl.BLEND);
      gl.blendFunc(gl.SRC_ALPHA, gl.ONE_MINUS_SRC_ALPHA);
      gl.depthFunc(gl.LEQUAL);
      draw(solids.target, 0);
      gl.depthFunc(gl.LESS);
    }
    return { set, show };
  }

  // ---------------------------------------------------------------------------------------------- controls

  const product = (a, b) => a.map((row) => b[0].map((_, k) => row.reduce((sum, value, j) => sum + value * b[j][k], 0)));
  const turn = (right, up) => {
    const [a, b, c, d] = [Math.cos(right), Math.sin(right), Math.cos(up), Math.sin(up)];
    return product([[1, 0, 0], [0, c, -d], [0, d, c]], [[a, 0, b], [0, 1, 0], [-b, 0, a]]);
  };

  function viewer() {
    const canvas = byId("scene");
    const gl = canvas.getContext("webgl2", { antialias: true, preserveDrawingBuffer: true });
    if (!gl) {
      problem("This browser gives no WebGL 2, which the turnable surface needs; perhaps it is switched off, or the " +
        "graphics driver is blocked. The pictures show the same morph.");
      return;
    }
    byId("viewer").hidden = false;
    const world = scene(gl), slider = byId("time"), play = byId("play");
    const fresh = () => ({ view: data.view, zoom: 0.92, pan: [0, 0] });
    let camera = fresh(), wanted = false, playing = 0;
    const redraw = () => {
      if (wanted) return;
      wanted = true;
      requestAnimationFrame(() => {
        wanted = false;
        world.show(Number(slider.value), camera, byId("target").checked);
      });
    };
    const fit = () => {
      const ratio = Math.min(window.devicePixelRatio || 1, 2);
      canvas.width = Math.max(Math.round(canvas.clientWidth * ratio), 1);
      canvas.height = Math.max(Math.round(canvas.clientHeight * ratio), 1);
      redraw();
    };

    const named = () => {
      const last = data.frames - 1, near = Math.round(Number(slider.value) * last);
      const number = String(last ? near : 0).padStart(Math.max(2, String(last).length), "0");
      byId("frame").textContent = `t = ${Number(slider.value).toFixed(2)}, nearest frame_${number}.mrc`;
    };
    slider.addEventListener("input", () => { stop(); named(); redraw(); });
    const stop = () => { playing = 0; play.textContent = "Play"; };
    play.addEventListener("click", () => {
      if (playing) return stop();
      const begun = performance.now(), first = Number(slider.value), mine = (playing = begun);
      play.textContent = "Pause";
      const tick = (now) => {
        if (playing !== mine) return;
        const along = (first + Math.max(now - begun, 0) / 3000) % 2; // there in three seconds, and back
        slider.value = along < 1 ? along : 2 - along;
        named();
        world.show(Number(slider.value), camera, byId("target").checked);
        requestAnimationFrame(tick);
      };
      requestAnimationFrame(tick);
    });

    const contour = (name, input, output) => {
      let due = 0;
      const chosen = () => {
        const level = data.levels[name] * 2 ** Number(input.value);
        output.textContent = `${level.toPrecision(3)}${Number(input.value) === 0 ? " (the run's)" : ""}`;
        return level;
      };
      const update = () => { world.set(name, chosen()); redraw(); };
      input.addEventListener("input", () => { chosen(); clearTimeout(due); due = setTimeout(update, 60); });
      update();
    };
    contour("initial", byId("level"), byId("level_text"));
    if (volumes.target) contour("target", byId("target_level"), byId("target_text"));
    else byId("target_row").hidden = true;
    byId("target").addEventListener("change", redraw);
    byId("bar").style.background = `linear-gradient(to right, ${data.palette.join(",")})`;

    const fingers = new Map();
    const spread = () => { const [a, b] = [...fingers.values()]; return Math.hypot(a.x - b.x, a.y - b.y); };
    canvas.addEventListener("pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      fingers.set(event.pointerId, { x: event.clientX, y: event.clientY });
    });
    canvas.addEventListener("pointermove", (event) => {
      const before = fingers.get(event.pointerId);
      if (!before) return;
      const dx = event.clientX - before.x, dy = event.clientY - before.y;
      const apart = fingers.size === 2 ? spread() : 0;
      fingers.set(event.pointerId, { x: event.clientX, y: event.clientY });
      if (fingers.size === 2) camera.zoom *= spread() / Math.max(apart, 1);
      else if (event.shiftKey || event.buttons & 2)
        camera.pan = [camera.pan[0] + (2 * dx) / canvas.clientWidth, camera.pan[1] - (2 * dy) / canvas.clientHeight];
      else camera.view = product(turn(dx * 0.01, dy * 0.01), camera.view);
      redraw();
    });
    for (const kind of ["pointerup", "pointercancel"])
      canvas.addEventListener(kind, (event) => fingers.delete(event.pointerId));
    canvas.addEventListener("contextmenu", (event) => event.preventDefault());
    canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      camera.zoom = Math.min(Math.max(camera.zoom * Math.exp(-event.deltaY * 0.001), 0.1), 30);
      redraw();
    }, { passive: false });
    canvas.addEventListener("keydown", (event) => {
      const by = { ArrowLeft: [-0.1, 0], ArrowRight: [0.1, 0], ArrowUp: [0, -0.1], ArrowDown: [0, 0.1] }[event.key];
      if (!by) return;
      event.preventDefault();
      camera.view = product(turn(...by), camera.view);
      redraw();
    });
    const reset = () => { camera = fresh(); redraw(); };
    byId("reset").addEventListener("click", reset);
    canvas.addEventListener("dblclick", reset);
    canvas.addEventListener("webglcontextlost", (event) => {
      event.preventDefault();
      stop();
      byId("viewer").hidden = true;
      problem("The browser has taken the graphics card away from this page; load it again.");
    });
    new ResizeObserver(fit).observe(canvas);
    named();
    fit();
  }

  // ---------------------------------------------------------------------------------------------- slices

  function slices() {
    const place = byId("place"), axis = byId("axis"), panels = [];
    for (const [name, volume] of Object.entries(volumes)) {
      const figure = document.createElement("figure"), canvas = document.createElement("canvas");
      const caption = document.createElement("figcaption");
      caption.textContent = name;
      figure.append(caption, canvas);
      byId("panels").append(figure);
      panels.push({ volume, canvas });
    }
    const draw = () => {
      const [nx, ny, nz] = data.shape, step = [ny * nz, nz, 1], across = Number(axis.value);
      const [u, v] = [0, 1, 2].filter((k) => k !== across), at = Number(place.value);
      byId("place_text").textContent = `${"xyz"[across]} = ${(data.origin[across] + at * data.voxel[across]).toFixed(1)} Å`;
      for (const { volume, canvas } of panels) {
        canvas.width = data.shape[u];
        canvas.height = data.shape[v];
        canvas.style.aspectRatio = `${data.shape[u] * data.voxel[u]} / ${data.shape[v] * data.voxel[v]}`;
        const context = canvas.getContext("2d"), image = context.createImageData(canvas.width, canvas.height);
        for (let j = 0, p = 0; j < canvas.height; j++) for (let i = 0; i < canvas.width; i++, p += 4) {
          const code = volume.codes[at * step[across] + i * step[u] + (canvas.height - 1 - j) * step[v]];
          const share = Math.max(Math.min(volume.density[code] / volume.black, 1), volume.signed ? -1 : 0);
          const end = !volume.signed ? [0, 0, 0] : share < 0 ? [33, 102, 172] : [178, 24, 43];
          for (let k = 0; k < 3; k++) image.data[p + k] = 255 + Math.abs(share) * (end[k] - 255);
          image.data[p + 3] = 255;
        }
        context.putImageData(image, 0, 0);
      }
    };
    const choose = () => {
      place.max = data.shape[Number(axis.value)] - 1;
      place.value = data.middle[Number(axis.value)];
      draw();
    };
    axis.addEventListener("change", choose);
    place.addEventListener("input", draw);
    byId("cuts").hidden = false;
    byId("still_slices").hidden = true;
    choose();
  }

  slices();
  viewer();
})().catch((error) => {
  const place = document.getElementById("problem");
  place.textContent = `The turnable surface could not be shown (${error.message}). The pictures show the same morph.`;
  place.hidden = false;
  throw error;
});
