// The model as a ribbon: wide and flat along helices and strands, a tube elsewhere.

const ROUND = 6; // corners of the ribbon's cross-section
const BETWEEN = 4; // cross-sections for each residue
const SHAPES = { H: [1.5, 0.35], E: [1.3, 0.3], C: [0.35, 0.35], N: [0.8, 0.5] }; // half width and height, Å

// Vertices (Å), triangles, and for each vertex the number of its residue.
function ribbon(xyz, chains, kinds) {
  const vertices = [], triangles = [], residues = [];
  for (const [first, last] of chains) if (last - first > 1) strand(xyz, first, last, kinds, vertices, triangles, residues);
  return {
    vertices: new Float32Array(vertices), triangles: new Uint32Array(triangles), residues: new Uint32Array(residues),
  };
}

// The ribbon of residues first to last (not included), which are joined, is added to the arrays.
function strand(xyz, first, last, kinds, vertices, triangles, residues) {
  const { Vector3, CatmullRomCurve3 } = THREE;
  const points = [];
  for (let k = first; k < last; k++) points.push(new Vector3(xyz[3 * k], xyz[3 * k + 1], xyz[3 * k + 2]));
  const even = points.map((p, k) => { // the pleats of a strand are smoothed
    if (kinds[first + k] !== "E" || !k || k === points.length - 1) return p;
    return p.clone().multiplyScalar(2).add(points[k - 1]).add(points[k + 1]).multiplyScalar(0.25);
  });
  const sides = across(points), curve = new CatmullRomCurve3(even, false, "centripetal");
  const count = (points.length - 1) * BETWEEN + 1, begin = vertices.length / 3;
  for (let n = 0; n < count; n++) {
    const at = n / BETWEEN, k = Math.min(Math.floor(at), points.length - 2), share = at - k;
    const middle = curve.getPoint(n / (count - 1)), along = curve.getTangent(n / (count - 1));
    const side = sides[k].clone().lerp(sides[k + 1], share);
    side.addScaledVector(along, -side.dot(along)).normalize();
    const up = along.clone().cross(side), [a, b] = [kinds[first + k], kinds[first + k + 1]].map((kind) => SHAPES[kind]);
    const [wide, high] = [0, 1].map((j) => a[j] + (b[j] - a[j]) * share);
    for (let r = 0; r < ROUND; r++) {
      const angle = (2 * Math.PI * r) / ROUND;
      const p = middle.clone().addScaledVector(side, wide * Math.cos(angle)).addScaledVector(up, high * Math.sin(angle));
      vertices.push(p.x, p.y, p.z);
      residues.push(first + Math.round(at));
    }
    if (n) for (let r = 0; r < ROUND; r++) {
      const [p, q] = [begin + n * ROUND + r, begin + n * ROUND + ((r + 1) % ROUND)];
      triangles.push(p - ROUND, p, q, p - ROUND, q, q - ROUND);
    }
  }
}

// Unit vectors across the chain at each point, in the plane of its neighbours, none against the one before.
function across(points) {
  const sides = points.map((p, k) => {
    const [a, b] = [points[Math.max(k - 1, 0)], points[Math.min(k + 1, points.length - 1)]];
    const bend = p.clone().multiplyScalar(2).sub(a).sub(b), along = b.clone().sub(a);
    return along.cross(bend).normalize();
  });
  for (let k = 1; k < sides.length; k++) {
    if (sides[k].lengthSq() < 0.5) sides[k].copy(sides[k - 1]);
    if (sides[k].dot(sides[k - 1]) < 0) sides[k].negate();
  }
  for (let k = sides.length - 2; k >= 0; k--) if (sides[k].lengthSq() < 0.5) sides[k].copy(sides[k + 1]);
  return sides;
}
