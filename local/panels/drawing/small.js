// node small.js PICTURE: the same PNG with a palette of 256 colours, which is a quarter as large.
const { readFileSync, writeFileSync } = require("node:fs");
const upng = require("upng-js");

const file = process.argv[2];
const picture = upng.decode(readFileSync(file));
const pixels = upng.toRGBA8(picture);
writeFileSync(file, Buffer.from(upng.encode(pixels, picture.width, picture.height, 256)));
