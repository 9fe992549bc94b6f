// The controls of the viewer: what they say, and what they change in it.

function viewer(data, volumes, frames, problem) {
  const byId = (id) => document.getElementById(id), canvas = byId("scene");
  if (!document.createElement("canvas").getContext("webgl2")) {
    problem("This browser gives no WebGL 2, which the interactive surface needs; perhaps it is switched off, or the " +
      "graphics driver is blocked. The pictures show the same morph.");
    return;
  }
  byId("viewer").hidden = false;
  const world = new World(canvas, data, frames, volumes);
  const slider = byId("time"), play = byId("play"), dark = matchMedia("(prefers-color-scheme: dark)");
  const state = { frame: 0, front: 0, layout: "one", look: "solid", target: "off", initial: "off", colour: "displacement" };
  let moving = false, playing = 0, wanted = false, quiet = 0, rough = 1, last = 0, between = (SLOW + QUICK) / 2;

  const controls = new THREE.TrackballControls(world.camera, canvas);
  Object.assign(controls, { staticMoving: true, rotateSpeed: 2.5, zoomSpeed: 1.2, panSpeed: 0.4, noZoom: true, keys: ["", "", ""] });

  function redraw(still = false) {
    if (!still) stir();
    if (wanted) return;
    wanted = true;
    requestAnimationFrame((now) => {
      wanted = false;
      const busy = moving || playing;
      canvas.dataset.triangles = world.draw(state, busy ? rough : 0);
      canvas.dataset.drawn = Number(canvas.dataset.drawn || 0) + 1;
      if (busy) pace(now);
    });
  }

  // Draw on coarser grids where pictures follow one another slowly, and on finer ones where quickly.
  function pace(now) {
    const apart = now - last;
    last = now;
    if (apart > QUIET) return;
    between = 0.8 * between + 0.2 * apart;
    if (between > SLOW && rough < ROUGHEST) [rough, between] = [rough + 1, (SLOW + QUICK) / 2];
    else if (between < QUICK && rough > 1) [rough, between] = [rough - 1, (SLOW + QUICK) / 2];
  }

  // For a moment everything is drawn coarsely, so that it follows the hand.
  function stir() {
    moving = true;
    clearTimeout(quiet);
    quiet = setTimeout(() => { moving = false; redraw(true); }, QUIET);
  }

  function follow() {
    controls.update();
    if (turning) requestAnimationFrame(follow);
  }
  let turning = false;
  controls.addEventListener("start", () => { turning = true; follow(); });
  controls.addEventListener("end", () => { turning = false; controls.update(); });
  controls.addEventListener("change", () => redraw());
  canvas.addEventListener("pointerdown", () => { canvas.focus({ preventScroll: true }); controls.noZoom = false; });
  canvas.addEventListener("focus", () => { controls.noZoom = false; });
  canvas.addEventListener("blur", () => { controls.noZoom = true; }); // the wheel scrolls the page again
  canvas.addEventListener("wheel", () => requestAnimationFrame(() => controls.update()), { passive: true });
  canvas.addEventListener("contextmenu", (event) => event.preventDefault());
  canvas.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: [-0.1, 0], ArrowRight: [0.1, 0], ArrowUp: [0, -0.1], ArrowDown: [0, 0.1] }[event.key];
    const zoom = { "+": 1.15, "=": 1.15, "-": 1 / 1.15 }[event.key];
    if (event.key === " ") play.click();
    else if (event.key === "Escape") canvas.blur();
    else if (by) turn(...by);
    else if (zoom) { world.camera.zoom *= zoom; redraw(); }
    else return;
    event.preventDefault();
  });

  function turn(right, up) {
    const { camera } = world, across = camera.up.clone().cross(camera.position).normalize();
    for (const [axis, angle] of [[camera.up.clone(), -right], [across, -up]]) {
      camera.position.applyAxisAngle(axis, angle);
      camera.up.applyAxisAngle(axis, angle);
    }
    controls.update();
    redraw();
  }

  function reset() {
    controls.target.set(0, 0, 0);
    world.home();
    controls.update();
    redraw(true);
  }
  byId("reset").addEventListener("click", reset);
  canvas.addEventListener("dblclick", reset);

  // -------------------------------------------------------------------------------------------- the frame

  function named() {
    const { name, time } = frames[state.frame];
    byId("frame").textContent = `${name}, t = ${time.toFixed(2)}`;
    canvas.setAttribute("aria-label", `Frame ${state.frame + 1} of ${frames.length} of the morph. Arrow keys turn it, + ` +
      "and − zoom, the space bar plays it.");
    contours.forEach((update) => update());
  }

  function go(number) {
    state.frame = Number(number);
    slider.value = String(number);
    named();
    redraw();
  }

  function stop() {
    playing = 0;
    play.textContent = "Play";
    redraw();
  }
  slider.addEventListener("input", () => { if (playing) stop(); go(slider.value); });
  play.addEventListener("click", () => {
    if (playing) return stop();
    const begun = performance.now(), last = frames.length - 1, mine = (playing = begun), first = state.frame / last;
    play.textContent = "Pause";
    const tick = (now) => {
      if (playing !== mine) return;
      const way = (first + (2 * Math.max(now - begun, 0)) / ROUND_TRIP) % 2, number = Math.round(last * (way < 1 ? way : 2 - way));
      if (number !== state.frame) go(number);
      requestAnimationFrame(tick);
    };
    requestAnimationFrame(tick);
  });

  // -------------------------------------------------------------------------------------------- contours

  // A slider (powers of two of the run's contour) and a number in the unit that is chosen, of one level.
  const contours = [];
  function contour(name, changes, slide, number, unit) {
    const own = world.contours[name], run = data.levels[name === "morph" ? "initial" : name], sigma = data.sigmas[name];
    const place = () => (name === "morph" ? state.frame : 0);
    let due = 0, level = run;
    const shown = { density: () => level, sigma: () => level / sigma, volume: () => own.enclosed(place(), level) };
    const read = {
      density: (value) => value, sigma: (value) => value * sigma, volume: (value) => own.enclosing(place(), value),
    };
    const write = () => { number.value = String(Number(shown[unit.value]().toPrecision(unit.value === "volume" ? 4 : 3))); };
    const set = (value) => {
      level = Math.max(value, 1e-9);
      clearTimeout(due);
      due = setTimeout(() => { changes.forEach((one) => world.contours[one].set(level)); redraw(true); }, 60);
    };
    slide.addEventListener("input", () => { set(run * 2 ** Number(slide.value)); write(); });
    number.addEventListener("change", () => {
      if (!(Number(number.value) > 0)) return write();
      set(read[unit.value](Number(number.value)));
      slide.value = String(Math.log2(level / run));
    });
    unit.addEventListener("change", write);
    contours.push(() => { if (unit.value === "volume") write(); });
    write();
  }
  contour("morph", ["morph", "initial"], byId("level"), byId("level_number"), byId("level_unit"));
  if (world.contours.target) contour("target", ["target"], byId("target_level"), byId("target_number"), byId("target_unit"));
  for (const row of document.querySelectorAll(".of_target")) row.hidden = !world.contours.target;
  for (const row of document.querySelectorAll(".of_model")) row.hidden = !world.model;

  // -------------------------------------------------------------------------------------------- what is shown

  const boxes = ["unexplained", "model", "axes", "hinges"], choices = ["look", "target", "initial", "colour", "layout"];
  if (world.model) byId("look").value = "transparent";
  for (const body of data.bodies.length > 1 ? [] : ["body"]) byId("colour").querySelector(`[value=${body}]`).disabled = true;
  if (!data.errors.known) byId("colour").querySelector("[value=error]").disabled = true;
  if (!volumes.difference) byId("colour").querySelector("[value=unexplained]").disabled = true;
  function read() {
    for (const name of boxes) state[name] = byId(name).checked;
    for (const name of choices) state[name] = byId(name).value;
    state.front = Number(byId("front").value);
    legend();
    redraw();
  }
  for (const name of boxes) byId(name).addEventListener("change", read);
  for (const name of choices) byId(name).addEventListener("change", read);
  byId("front").addEventListener("input", read);

  const keys = {
    displacement: [data.palette, "0 Å", `≥ ${data.film.top} Å`, "displacement, start to end"],
    error: [data.errors.palette, "0 Å", `≥ ${data.errors.top} Å`, "predicted error; grey: not shown by the target"],
    unexplained: [DIFFERENCE, "too little", "too much", "density here, compared with the target: of the last frame"],
  };
  function legend() {
    const { colour } = state, named_bodies = byId("bodies_key"), [palette, low, top, what] = keys[colour] || keys.displacement;
    byId("scale").hidden = !(colour in keys);
    byId("bar").style.background = `linear-gradient(to right, ${palette.join(",")})`;
    byId("bar_low").textContent = low;
    byId("bar_top").textContent = top;
    byId("bar_what").textContent = what;
    named_bodies.hidden = colour !== "body";
    named_bodies.replaceChildren(...data.bodies.map(({ name, colour: own }) => {
      const entry = document.createElement("span"), spot = document.createElement("i");
      spot.style.background = own;
      entry.append(spot, name);
      return entry;
    }));
    byId("views").hidden = state.layout !== "three";
  }

  byId("screenshot").addEventListener("click", () => {
    world.draw(state, 0);
    const link = document.createElement("a");
    link.href = canvas.toDataURL("image/png");
    link.download = `morph_${state.frame}.png`;
    link.click();
  });

  function paper() {
    state.background = dark.matches ? "#171c22" : "#ffffff";
    redraw(true);
  }
  dark.addEventListener("change", paper);
  new ResizeObserver(() => {
    world.resize(Math.min(window.devicePixelRatio || 1, 2));
    controls.handleResize();
    redraw(true);
  }).observe(canvas);
  canvas.addEventListener("webglcontextlost", (event) => {
    event.preventDefault();
    if (playing) stop();
    byId("viewer").hidden = true;
    problem("The browser has taken the graphics card away from this page; load it again.");
  });
  paper();
  read();
  go(0);
}
