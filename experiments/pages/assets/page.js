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
    problem("This browser is too old for the interactive surface and slices (Chrome 80, Firefox 113, Safari 16.4 " +
      "or later have what it takes). The pictures show the same.");
    return;
  }
  const volumes = {};
  for (const [name, volume] of Object.entries(data.volumes))
    volumes[name] = { ...volume, grid: data.grid, codes: await unpacked(volume.data), density: densities(volume) };
  const frames = [], density = densities(data.film); // all frames have the same grids and codes
  for (const frame of data.film.frames) {
    const [codes, displacement] = [await unpacked(frame.data), await unpacked(frame.displacement)];
    frames.push({ ...frame, grid: data.film.grid, density, codes, displacement });
  }

  // ---------------------------------------------------------------------------------------------- surfaces

  // The surface at a level by "surface nets": a vertex in each cell that the surface passes, at the mean of its crossings
  // of the cell's edges, and a quadrilateral around each edge of the grid that it crosses. Vertices are in Å.
  function surface(volume, level) {
    const { grid, codes, density } = volume, [nx, ny, nz] = grid.shape;
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
    const placed = Float32Array.from(vertices, (value, i) => grid.origin[i % 3] + value * grid.voxel[i % 3]);
    return { vertices: placed, triangles: new Uint32Array(triangles) };
  }

  // Values (0 to 1) of bytes on a grid at positions (Å), linear between the grid's points.
  function sampled(codes, grid, positions) {
    const [nx, ny, nz] = grid.shape, { origin, voxel } = grid, out = new Float32Array(positions.length / 3);
    const clamp = (value, n) => Math.min(Math.max(value, 0), n - 1.000001);
    for (let i = 0; i < out.length; i++) {
      const [gx, gy, gz] = [nx, ny, nz].map((n, k) => clamp((positions[3 * i + k] - origin[k]) / voxel[k], n));
      const x = Math.floor(gx), y = Math.floor(gy), z = Math.floor(gz), fx = gx - x, fy = gy - y, fz = gz - z;
      for (let corner = 0; corner < 8; corner++) {
        const a = corner & 1, b = (corner >> 1) & 1, c = corner >> 2;
        const weight = (a ? fx : 1 - fx) * (b ? fy : 1 - fy) * (c ? fz : 1 - fz);
        out[i] += (weight * codes[((x + a) * ny + y + b) * nz + z + c]) / 255;
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
    in vec3 position, across; in float displacement;
    uniform mat3 view; uniform vec3 centre; uniform vec2 scale, pan; uniform float radius;
    out vec3 normal; out float share, depth;
    void main() {
      vec3 seen = view * (position - centre);
      normal = view * normalize(across + 1e-9);
      share = displacement; depth = seen.z / radius;
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
    const places = Object.fromEntries(["position", "across", "displacement"].map(
      (name) => [name, gl.getAttribLocation(program, name)]));
    const colours = data.palette.flatMap((c) => [1, 3, 5].map((k) => parseInt(c.slice(k, k + 2), 16) / 255));
    gl.uniform3fv(uniform("palette"), colours);
    gl.uniform3fv(uniform("centre"), data.centre);
    gl.uniform1f(uniform("radius"), Math.hypot(...data.sides) / 2);
    gl.enable(gl.DEPTH_TEST);
    gl.clearColor(1, 1, 1, 1);

    const buffer = (kind, values) => {
      const made = gl.createBuffer();
      gl.bindBuffer(kind, made);
      gl.bufferData(kind, values, gl.STATIC_DRAW);
      return made;
    };

    // A surface on the graphics card.
    function solid(volume, level) {
      const { vertices, triangles } = surface(volume, level);
      const plain = () => new Float32Array(vertices.length / 3);
      const far = volume.displacement ? sampled(volume.displacement, data.film.colours, vertices) : plain();
      return {
        count: triangles.length,
        index: buffer(gl.ELEMENT_ARRAY_BUFFER, triangles),
        position: buffer(gl.ARRAY_BUFFER, vertices),
        across: buffer(gl.ARRAY_BUFFER, normals(vertices, triangles)),
        displacement: buffer(gl.ARRAY_BUFFER, far),
      };
    }

    // Surfaces of some volumes at one level, each worked out when it is first needed.
    function kept(volumes, level) {
      const made = [];
      return {
        get: (k) => (made[k] ??= solid(volumes[k], level)),
        remove: () => made.forEach(({ index, position, across, displacement }) =>
          [index, position, across, displacement].forEach((one) => gl.deleteBuffer(one))),
      };
    }

    function draw(what) {
      for (const [name, size] of [["position", 3], ["across", 3], ["displacement", 1]]) {
        gl.bindBuffer(gl.ARRAY_BUFFER, what[name]);
        gl.enableVertexAttribArray(places[name]);
        gl.vertexAttribPointer(places[name], size, gl.FLOAT, false, 0, 0);
      }
      gl.bindBuffer(gl.ELEMENT_ARRAY_BUFFER, what.index);
      gl.drawElements(gl.TRIANGLES, what.count, gl.UNSIGNED_INT, 0);
    }

    const shown = {};
    function set(name, level) {
      if (shown[name]) shown[name].remove();
      shown[name] = kept(name === "target" ? [volumes.target] : frames, level);
    }

    function show(number, camera, with_target) {
      const { canvas } = gl, ratio = canvas.width / canvas.height;
      gl.viewport(0, 0, canvas.width, canvas.height);
      gl.clear(gl.COLOR_BUFFER_BIT | gl.DEPTH_BUFFER_BIT);
      const size = 2 * camera.zoom * Math.min(1 / data.sides[1], ratio / data.sides[0]); // what is seen at first fits
      gl.uniform2f(uniform("scale"), size / ratio, size);
      gl.uniform2fv(uniform("pan"), camera.pan);
      gl.uniformMatrix3fv(uniform("view"), true, camera.view.flat());
      gl.uniform1i(uniform("coloured"), 1);
      gl.disable(gl.BLEND);
      draw(shown.frames.get(number));
      if (!with_target || !shown.target) return;
      const target = shown.target.get(0);
      gl.uniform1i(uniform("coloured"), 0); // the nearest layer alone: first its depth, then its colour
      gl.uniform4f(uniform("plain"), 0.25, 0.42, 0.6, 0.5);
      gl.colorMask(false, false, false, false);
      draw(target);
      gl.colorMask(true, true, true, true);
      gl.enable(gl.BLEND);
      gl.blendFunc(gl.SRC_ALPHA, gl.ONE_MINUS_SRC_ALPHA);
      gl.depthFunc(gl.LEQUAL);
      draw(target);
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
      problem("This browser gives no WebGL 2, which the interactive surface needs; perhaps it is switched off, or the " +
        "graphics driver is blocked. The pictures show the same morph.");
      return;
    }
    byId("viewer").hidden = false;
    const world = scene(gl), slider = byId("time"), play = byId("play");
    const fresh = () => ({ view: data.view, zoom: 0.95, pan: [0, 0] });
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
      const { name, time } = frames[Number(slider.value)];
      byId("frame").textContent = `${name}, t = ${time.toFixed(2)}`;
    };
    slider.addEventListener("input", () => { stop(); named(); redraw(); });
    const stop = () => { playing = 0; play.textContent = "Play"; };
    play.addEventListener("click", () => {
      if (playing) return stop();
      const begun = performance.now(), last = frames.length - 1, mine = (playing = begun);
      const first = Number(slider.value) / last;
      play.textContent = "Pause";
      const tick = (now) => {
        if (playing !== mine) return;
        const along = (first + Math.max(now - begun, 0) / 3000) % 2; // there in three seconds, and back
        const number = String(Math.round(last * (along < 1 ? along : 2 - along)));
        if (number !== slider.value) {
          slider.value = number;
          named();
          redraw();
        }
        requestAnimationFrame(tick);
      };
      requestAnimationFrame(tick);
    });

    const contour = (name, input, output) => {
      let due = 0;
      const chosen = () => {
        const level = data.levels[name === "frames" ? "initial" : name] * 2 ** Number(input.value);
        output.textContent = `${level.toPrecision(3)}${Number(input.value) === 0 ? " (the run's)" : ""}`;
        return level;
      };
      const update = () => { world.set(name, chosen()); redraw(); };
      input.addEventListener("input", () => { chosen(); clearTimeout(due); due = setTimeout(update, 60); });
      update();
    };
    contour("frames", byId("level"), byId("level_text"));
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
      const [nx, ny, nz] = data.grid.shape, step = [ny * nz, nz, 1], across = Number(axis.value);
      const [u, v] = [0, 1, 2].filter((k) => k !== across), at = Number(place.value);
      const where = data.grid.origin[across] + at * data.grid.voxel[across];
      byId("place_text").textContent = `${"xyz"[across]} = ${where.toFixed(1)} Å`;
      for (const { volume, canvas } of panels) {
        canvas.width = data.grid.shape[u];
        canvas.height = data.grid.shape[v];
        const [width, height] = [u, v].map((k) => data.grid.shape[k] * data.grid.voxel[k]);
        canvas.style.aspectRatio = `${width} / ${height}`;
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
      place.max = data.grid.shape[Number(axis.value)] - 1;
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
  place.textContent = `The interactive surface could not be shown (${error.message}). The pictures show the same morph.`;
  place.hidden = false;
  throw error;
});
