// The morph in three dimensions, drawn by three.js: maps, model, axes, and their controls.

const SMALL_GRID = 200000; // voxels: smaller maps are contoured with all of them also while they move
const MOST_TRIANGLES = 40000; // while something moves; a computer without a graphics card draws as many fluently
const ROUGHEST = 2; // times that the grid is halved at most while something moves
const SLOW = 50, QUICK = 20; // ms between two pictures: then the grid is halved once more, or once less
const QUIET = 250; // ms without a movement, after which the surface is drawn with all its detail
const ROUND_TRIP = 6000; // ms: the morph and back
const PLAIN = { target: "#6f93b8", initial: "#9aa5af", above: "#2166ac", below: "#b2182b", unsupported: "#e4e7ea" };
const DIFFERENCE = ["#2166ac", "#d9dde2", "#b2182b"]; // too little density, as much as the target has, too much
const LOOKS = { solid: 1, transparent: 0.42 };

class Contour {
  // Surfaces of one or more volumes on one grid at one level, each made when it is first needed.
  constructor(volumes, level) {
    Object.assign(this, { volumes, level, made: new Map() });
  }

  set(level) {
    this.level = level;
    for (const { geometry } of this.made.values()) geometry.dispose();
    this.made.clear();
  }

  values(k) {
    const { codes, density } = this.volumes[k];
    return Float32Array.from(codes, (code) => density[code]);
  }

  // The surface of a volume, on a grid that is halved `rough` times, if the map is large.
  get(k, rough) {
    const whole = this.made.get(`${k} 0`), small = this.volumes[k].codes.length <= SMALL_GRID;
    if (!rough || small || (whole && whole.triangles <= MOST_TRIANGLES)) return this.kept(k, 0);
    return this.kept(k, rough);
  }

  kept(k, rough) {
    const name = `${k} ${rough}`;
    if (!this.made.has(name)) {
      let values = this.values(k), { grid } = this.volumes[k];
      for (let time = 0; time < rough; time++) ({ values, grid } = halved(values, grid));
      const { vertices, triangles } = surface(values, grid, this.level);
      this.made.set(name, { geometry: geometry(vertices, triangles), triangles: triangles.length / 3, painted: null });
    }
    return this.made.get(name);
  }

  // Volume (Å³) above a density, or the density above which a volume is enclosed, of one of the volumes.
  enclosed(k, level) {
    const { codes, density, grid } = this.volumes[k];
    let first = 0;
    while (first < 256 && density[first] <= level) first++;
    let count = 0;
    for (const code of codes) if (code >= first) count++;
    return count * grid.voxel.reduce((a, b) => a * b);
  }

  enclosing(k, volume) {
    const { codes, density, grid } = this.volumes[k], counts = new Float64Array(256), voxel = grid.voxel.reduce((a, b) => a * b);
    for (const code of codes) counts[code]++;
    let left = volume / voxel, code = 255;
    while (code > 0 && left > counts[code]) left -= counts[code--];
    const share = counts[code] ? left / counts[code] : 0, below = density[Math.max(code - 1, 0)];
    return density[code] + share * (below - density[code]);
  }
}

function geometry(vertices, triangles) {
  const made = new THREE.BufferGeometry();
  made.setAttribute("position", new THREE.BufferAttribute(vertices, 3));
  made.setIndex(new THREE.BufferAttribute(triangles, 1));
  made.computeVertexNormals();
  return made;
}

// Colours of numbers from 0 to 1 along a palette.
function along(palette) {
  const stops = palette.map((name) => new THREE.Color(name)), last = stops.length - 1, colour = new THREE.Color();
  return (share) => {
    const at = Math.min(Math.max(share, 0), 1) * last, low = Math.min(Math.floor(at), last - 1);
    return colour.lerpColors(stops[low], stops[low + 1], at - low);
  };
}

// For each way of colouring: the colour of a byte that the volumes and the model keep.
function paints(data) {
  const bodies = data.bodies.map(({ colour }) => new THREE.Color(colour)), grey = new THREE.Color(PLAIN.unsupported);
  const far = along(data.palette), unexplained = along(DIFFERENCE), wrong = along(data.errors.palette), plain = new THREE.Color(PLAIN.target);
  return {
    displacement: (code) => far(code / 255),
    error: (code) => (code === 255 ? grey : wrong((code - 1) / 253)),
    body: (code) => bodies[code - 1] || grey,
    plain: () => plain,
    unexplained: (code) => unexplained(code / 255),
  };
}

function colourAttribute(codes, paint) {
  const out = new Float32Array(3 * codes.length);
  codes.forEach((code, k) => { const { r, g, b } = paint(code); out.set([r, g, b], 3 * k); });
  return new THREE.BufferAttribute(out, 3);
}

// Whether there is no graphics card: smoothing of edges then takes most of the time.
function drawnInSoftware() {
  const gl = document.createElement("canvas").getContext("webgl2"), about = gl.getExtension("WEBGL_debug_renderer_info");
  return /swiftshader|llvmpipe|software|basic render/i.test(gl.getParameter(about ? about.UNMASKED_RENDERER_WEBGL : gl.RENDERER));
}

class World {
  // The scene: a root whose origin is the middle of the molecule, with a mesh for everything that can be shown.
  constructor(canvas, data, frames, volumes) {
    const { WebGLRenderer, Scene, Group, Fog, Color, HemisphereLight, DirectionalLight, OrthographicCamera } = THREE;
    Object.assign(this, { canvas, data, frames, volumes, paint: paints(data) });
    this.renderer = new WebGLRenderer({ canvas, antialias: !drawnInSoftware(), preserveDrawingBuffer: true });
    this.renderer.autoClear = false;
    this.radius = Math.hypot(...data.sides) / 2;
    this.scene = new Scene();
    this.scene.fog = new Fog(0xffffff, 3 * this.radius, 6.5 * this.radius);
    this.root = new Group();
    this.root.position.fromArray(data.centre).negate();
    this.camera = new OrthographicCamera(-1, 1, 1, -1, 0.1, 8 * this.radius);
    const light = new DirectionalLight(0xffffff, 2.2);
    light.position.set(0.4, 0.6, 1);
    this.camera.add(light, light.target);
    this.scene.add(this.root, this.camera, new HemisphereLight(0xffffff, 0x8a94a0, 1.6));
    this.front = 0;
    this.contours = { morph: new Contour(frames, data.levels.initial) };
    this.contours.initial = new Contour(frames.slice(0, 1), data.levels.initial);
    if (volumes.target) {
      this.contours.target = new Contour([volumes.target], data.levels.target);
      const { codes, grid, density } = volumes.difference;
      const turned = { codes, grid, density: density.map((value) => -value) };
      this.contours.above = new Contour([turned], data.levels.target); // the target has more
      this.contours.below = new Contour([volumes.difference], data.levels.target);
    }
    this.meshes = Object.fromEntries(Object.keys(this.contours).map((name) => [name, this.surfaceMeshes(name)]));
    this.model = data.model ? this.modelMeshes() : null;
    this.axes = this.axisMeshes();
    this.home();
  }

  home() {
    const [, up, towards] = this.data.view.map((row) => new THREE.Vector3(...row));
    this.camera.position.copy(towards).multiplyScalar(4 * this.radius);
    this.camera.up.copy(up);
    this.camera.zoom = 0.95;
    this.camera.lookAt(0, 0, 0);
  }

  surfaceMeshes(name) {
    const { Mesh, MeshLambertMaterial, MeshBasicMaterial, DoubleSide, BufferGeometry } = THREE, empty = new BufferGeometry();
    const plain = PLAIN[name] ? { color: PLAIN[name] } : { vertexColors: true };
    const look = new Mesh(empty, new MeshLambertMaterial({ ...plain, side: DoubleSide }));
    const depth = new Mesh(empty, new MeshBasicMaterial({ colorWrite: false, side: DoubleSide }));
    const net = new Mesh(empty, new MeshBasicMaterial({ ...plain, wireframe: true, transparent: true, opacity: 0.35 }));
    depth.renderOrder = 1; // after what is solid, so that what is transparent shows its nearest layer alone
    look.renderOrder = 2;
    this.root.add(look, depth, net);
    return { look, depth, net };
  }

  modelMeshes() {
    const { Mesh, MeshLambertMaterial, DoubleSide, BufferGeometry, SphereGeometry } = THREE;
    const mesh = new Mesh(new BufferGeometry(), new MeshLambertMaterial({ vertexColors: true, side: DoubleSide }));
    const material = new MeshLambertMaterial({ color: "#1d2733" }), ball = new SphereGeometry(1.3, 10, 8);
    const hinges = this.data.model.hinges.map((residue) => Object.assign(new Mesh(ball, material), { residue }));
    this.root.add(mesh, ...hinges);
    return { mesh, hinges, made: new Map() };
  }

  axisMeshes() {
    const { Mesh, MeshLambertMaterial, CylinderGeometry, ConeGeometry, Vector3, Quaternion } = THREE;
    return this.data.bodies.filter((body) => body.axis).flatMap((body) => {
      const along = new Vector3(...body.axis), middle = new Vector3(...body.axis_point), { half } = body;
      const material = new MeshLambertMaterial({ color: body.colour }), to = new Quaternion();
      to.setFromUnitVectors(new Vector3(0, 1, 0), along);
      const rod = new Mesh(new CylinderGeometry(0.5, 0.5, 2 * half, 10), material);
      const tip = new Mesh(new ConeGeometry(1.6, 5, 14), material);
      rod.position.copy(middle);
      tip.position.copy(middle).addScaledVector(along, half);
      for (const one of [rod, tip]) one.quaternion.copy(to);
      this.root.add(rod, tip);
      return [rod, tip];
    });
  }

  // Put the surface of volume k into the meshes of a map, and make those visible that its look needs.
  showSurface(name, k, look, rough, by) {
    const meshes = this.meshes[name], shown = look !== "off";
    for (const mesh of Object.values(meshes)) mesh.visible = false;
    if (!shown) return 0;
    const made = this.contours[name].get(k, look === "mesh" ? rough + 1 : rough);
    if (meshes.look.material.vertexColors && made.painted !== by) {
      const codes = this.codesAt(made.geometry.getAttribute("position").array, k, by);
      made.geometry.setAttribute("color", colourAttribute(codes, this.paint[by]));
      made.painted = by;
    }
    for (const mesh of Object.values(meshes)) mesh.geometry = made.geometry;
    const clear = look === "transparent" || name !== "morph"; // overlays stay transparent, so that the morph shows behind them
    meshes.net.visible = look === "mesh";
    meshes.look.visible = look !== "mesh";
    meshes.depth.visible = clear && look !== "mesh";
    if (meshes.look.material.transparent !== clear) meshes.look.material.needsUpdate = true;
    Object.assign(meshes.look.material, { transparent: clear, opacity: clear ? LOOKS.transparent : 1 });
    return made.triangles;
  }

  // Codes of what colours a frame, at positions (Å).
  codesAt(positions, k, by) {
    if (by === "plain") return new Uint8Array(positions.length / 3);
    if (by !== "unexplained") return sampled(this.frames[k][by], this.data.film.colours, positions, by !== "displacement");
    const { codes, black, high } = this.volumes.difference, wide = high / black; // the key ends where slices are full
    return sampled(codes, this.data.grid, positions).map((code) => 127.5 + Math.min(Math.max((code - 128) * wide, -127), 127));
  }

  showModel(k, shown, hinges, by) {
    if (!this.model) return 0;
    const { mesh, made } = this.model, { chains, kinds, frames } = this.data.model;
    mesh.visible = shown;
    this.model.hinges.forEach((ball) => { ball.visible = hinges; });
    if (!made.has(k)) {
      const { vertices, triangles, residues } = ribbon(frames[k], chains, kinds);
      made.set(k, { geometry: geometry(vertices, triangles), residues, painted: null });
    }
    const one = made.get(k);
    if (one.painted !== by) {
      const codes = by in this.data.model ? this.data.model[by] : this.codesAt(frames[k], k, by);
      one.geometry.setAttribute("color", colourAttribute(Array.from(one.residues, (r) => codes[r]), this.paint[by]));
      one.painted = by;
    }
    mesh.geometry = one.geometry;
    for (const ball of this.model.hinges) ball.position.fromArray(frames[k], 3 * ball.residue);
    return shown ? one.geometry.index.count / 3 : 0;
  }

  resize(ratio) {
    const { clientWidth, clientHeight } = this.canvas;
    this.renderer.setPixelRatio(ratio);
    this.renderer.setSize(Math.max(clientWidth, 1), Math.max(clientHeight, 1), false);
  }

  // Draw what a state says, surfaces on grids halved `rough` times; return the number of triangles.
  draw(state, rough) {
    const { renderer, camera, scene, radius } = this, { clientWidth: width, clientHeight: height } = this.canvas;
    const views = state.layout === "three" && this.contours.target ? ["initial", "target", "morph"] : ["all"];
    const each = width / views.length, size = this.data.sides[1] / 2, ratio = each / height;
    const tall = Math.max(size, this.data.sides[0] / 2 / ratio);
    Object.assign(camera, { left: -tall * ratio, right: tall * ratio, top: tall, bottom: -tall });
    camera.near = 2 * radius + state.front * 4 * radius;
    camera.updateProjectionMatrix();
    scene.fog.color.set(state.background);
    renderer.setClearColor(state.background);
    renderer.setScissorTest(false);
    renderer.clear();
    renderer.setScissorTest(true);
    let triangles = 0;
    views.forEach((view, place) => {
      renderer.setViewport(place * each, 0, each, height);
      renderer.setScissor(place * each, 0, each, height);
      triangles += this.compose(view, state, rough);
      renderer.render(scene, camera);
    });
    return triangles;
  }

  // Make visible what one of the views shows.
  compose(view, state, rough) {
    const k = view === "initial" ? 0 : state.frame, alone = view === "all", last = this.frames.length - 1;
    const looks = {
      morph: view === "target" ? "off" : state.look,
      target: view === "target" ? "solid" : alone ? state.target : "off",
      initial: alone ? state.initial : "off",
      above: state.unexplained && (alone || view === "morph") ? "solid" : "off",
      below: state.unexplained && (alone || view === "morph") ? "solid" : "off",
    };
    let triangles = 0;
    for (const name of Object.keys(this.contours))
      triangles += this.showSurface(name, name === "morph" ? k : 0, looks[name], rough, state.colour);
    triangles += this.showModel(view === "target" ? last : k, state.model && view !== "target", state.hinges && view !== "target", state.colour);
    for (const mesh of this.axes) mesh.visible = state.axes && view !== "target";
    return triangles;
  }
}
