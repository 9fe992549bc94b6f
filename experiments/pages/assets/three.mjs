// What the page takes of three.js. three.js is made of this file:
//   npm install three@0.187.0 esbuild && npx esbuild three.mjs --bundle --minify --format=iife \
//     --global-name=THREE --legal-comments=inline --outfile=three.js
export {
  BufferAttribute, BufferGeometry, CatmullRomCurve3, Color, ConeGeometry, CylinderGeometry, DirectionalLight, DoubleSide,
  Fog, Group, HemisphereLight, Mesh, MeshBasicMaterial, MeshLambertMaterial, OrthographicCamera, Quaternion, REVISION,
  Scene, SphereGeometry, Vector3, WebGLRenderer,
} from "three";
export { TrackballControls } from "three/addons/controls/TrackballControls.js";
