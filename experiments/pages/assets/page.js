// Shows the morph and the slices from the numbers in the element "data". Nothing is fetched.
(async () => {
  const byId = (id) => document.getElementById(id), data = JSON.parse(byId("data").textContent);

  function problem(text) {
    byId("problem").textContent = text;
    byId("problem").hidden = false;
  }

  function bytes(text) {
    const letters = atob(text), out = new Uint8Array(letters.length);
    for (let i = 0; i < out.length; i++) out[i] = letters.charCodeAt(i);
    return out;
  }

  // Bytes from base64 of a zlib stream.
  async function unpacked(text) {
    const stream = new Blob([bytes(text)]).stream().pipeThrough(new DecompressionStream("deflate"));
    return new Uint8Array(await new Response(stream).arrayBuffer());
  }

  // Densities that the 256 codes of a volume stand for: finer towards the low end, or signed for the difference.
  function densities({ low, high, signed }) {
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
  for (const { name, time, data: codes, displacement, body, error } of data.film.frames)
    frames.push({
      name, time, density, grid: data.film.grid, codes: await unpacked(codes), displacement: await unpacked(displacement),
      body: await unpacked(body), error: await unpacked(error),
    });
  if (data.model) {
    const { model } = data, unit = model.unit; // Å
    model.frames = await Promise.all(model.frames.map(async (text) =>
      Float32Array.from(new Int16Array((await unpacked(text)).buffer), (value, k) => data.centre[k % 3] + unit * value)));
    for (const name of ["displacement", "body", "error"]) model[name] = bytes(model[name]);
  }
  slices(data, volumes);
  if (data.fsc) curves(data.fsc);
  viewer(data, volumes, frames, problem);
})().catch((error) => {
  const place = document.getElementById("problem");
  place.textContent = `The interactive surface could not be shown (${error.message}). The pictures show the same morph.`;
  place.hidden = false;
  throw error;
});
