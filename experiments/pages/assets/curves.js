// A cursor on the Fourier shell correlations: the values of all curves at the frequency beneath it.

function curves({ box, frequency, curves: lines }) {
  const drawing = document.querySelector("#fsc svg"), shown = document.getElementById("fsc_at");
  const [left, , wide] = box, last = frequency[frequency.length - 1];
  drawing.addEventListener("pointermove", (event) => {
    const { left: x, width } = drawing.getBoundingClientRect();
    const wanted = (((event.clientX - x) / width - left) / wide) * last;
    if (wanted < 0 || wanted > last) return;
    let k = 1;
    while (k < frequency.length - 1 && frequency[k] < wanted) k++;
    const values = Object.entries(lines).map(([name, line]) => `${name} ${line[k].toFixed(2)}`);
    shown.textContent = `At ${(1 / frequency[k]).toFixed(1)} Å: ${values.join(", ")}`;
  });
}
