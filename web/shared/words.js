// What the widgets say, in the language that ComfyUI is set to. The code says everything in English; other languages
// have a dictionary from there. Keywords of the text form of schedules, and what is wrong in it, stay as they are: the
// server says them too.

import { ZH } from "./zh.js";

const DICTIONARIES = { zh: ZH };

/**
 * A function that gives an English sentence in a language (ComfyUI's setting Comfy.Locale) that has a dictionary, with
 * each {name} in it replaced by that one of `values`.
 */
export function translator(locale) {
    const dictionary = DICTIONARIES[locale] ?? {};
    return (english, values = {}) =>
        (dictionary[english] ?? english).replace(/\{(\w+)\}/g, (_, name) => String(values[name]));
}

export const inEnglish = translator("en");

/** The translator for ComfyUI's page. ComfyUI makes all nodes anew when its language is changed. */
export function pageTranslator(app) {
    return translator(app.extensionManager?.setting?.get("Comfy.Locale"));
}
